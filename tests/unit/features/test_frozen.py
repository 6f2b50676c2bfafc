"""What features of networks that are not trained are kept under."""

import torch

from rayssl.pipeline.features.frozen import digest_of
from rayssl.pipeline.models.encoder import build_encoder


def test_the_memory_layout_of_weights_changes_nothing() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet-tiny", channels=3, image_size=32)
    before = digest_of(encoder)
    encoder.net.to(memory_format=torch.channels_last)
    assert digest_of(encoder) == before
