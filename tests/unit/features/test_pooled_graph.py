"""An encoder as an ONNX graph gives what torch gives, for any number of images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rayssl.pipeline.features.pooled import names_of, pick
from rayssl.pipeline.features.pooled_graph import _averages, pooled_graph
from rayssl.pipeline.models.encoder import Encoder, build_encoder
from rayssl.pipeline.models.onnx_file import network_of, open_session
from rayssl.pipeline.models.onnx_graph import NoGraphError, features_graph

ENCODERS = [
    ("cnn-small", 3, 20, {}),
    ("resnet-tiny", 1, 24, {}),  # its last map is 3 × 3: cells of 2 × 2 overlap
    ("resnet18", 5, 72, {"latent_dim": 4}),
    ("conv", 1, 28, {"latent_dim": 6}),
    ("deep", 1, 12, {"latent_dim": 4, "depth": 2}),
    ("pixelcnn", 1, 9, {"depth": 1, "kernel": 3, "latent_dim": 6}),
    ("mobilenet_v3_small", 3, 64, {}),  # its stages are seen by hooks
    ("vit_b_32", 3, 32, {}),
]


def random_encoder(name: str, channels: int, size: int, sizes: dict[str, int]) -> Encoder:
    torch.manual_seed(0)
    return build_encoder(name, channels=channels, image_size=size, **sizes).eval()


def images(encoder: Encoder, n: int) -> torch.Tensor:
    shape = (n, encoder.image_size, encoder.image_size, encoder.channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(("name", "channels", "size", "sizes"), ENCODERS)
def test_every_output_is_that_of_torch(name: str, channels: int, size: int, sizes: dict[str, int]) -> None:
    encoder = random_encoder(name, channels, size, sizes)
    names = names_of(encoder)
    content, outputs = pooled_graph(encoder, names)
    described = {"encoder": "", "channels": channels, "image_size": size, "outputs": outputs}
    network = network_of(content, described)
    for n in (1, 5):
        seen = images(encoder, n)
        with torch.inference_mode():
            stages = encoder.stages(seen.permute(0, 3, 1, 2).float() / 255)
        found = network(seen.numpy(), names)
        for one in names:
            expected = pick(stages, one).numpy()
            np.testing.assert_allclose(found[one], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
            assert outputs[one] == expected.shape[1]


def test_features_take_images_from_0_to_1() -> None:
    encoder = random_encoder("cnn-small", 3, 16, {})
    x = torch.rand(3, 3, 16, 16)
    (found,) = open_session(features_graph(encoder)).run(None, {"images": x.numpy()})
    np.testing.assert_allclose(found, encoder(x).detach().numpy(), rtol=0, atol=1e-5)


@given(height=st.integers(1, 20), width=st.integers(1, 20), cells=st.sampled_from([2, 4]))
@settings(deadline=None)
def test_averages_of_cells_are_adaptive_pooling(height: int, width: int, cells: int) -> None:
    value = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height * 32 + width))
    found = torch.matmul(torch.matmul(_averages(height, cells), value), _averages(width, cells).T)
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(value, cells))


class Unknown(torch.nn.Module):
    """Something that ONNX has no operator for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x.mean(dim=1))[1]


def test_what_has_no_graph_is_one_line() -> None:
    encoder = random_encoder("cnn-small", 3, 16, {})
    encoder.net.add_module("layer3", Unknown())
    encoder.net.stages = lambda x: {"features": encoder.net.layer3(x)}  # type: ignore[method-assign,assignment,operator]
    with pytest.raises(NoGraphError) as failed:
        pooled_graph(encoder, ["last"])
    assert 0 < len(str(failed.value)) <= 200
    assert "\n" not in str(failed.value)
