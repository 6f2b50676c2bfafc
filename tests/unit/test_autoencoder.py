"""Autoencoder: sizes, corruption, and what the loss compares."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.config import method_config
from pipeline.encoders import build_encoder
from pipeline.errors import UserError
from pipeline.methods.autoencoder import (
    Autoencoder,
    AutoencoderConfig,
    Decoder,
    add_gaussian_noise,
    count_halvings,
    halved,
    mask_patches,
)
from pipeline.methods.base import Batch, Traits

KEY = [0, 0, torch.arange(1, 201), 0, "corruption"]


def build(size: int = 8, channels: int = 3, encoder: str = "cnn-small", **values) -> Autoencoder:
    torch.manual_seed(0)
    traits = Traits(image_size=size, channels=channels, mirror=True)
    return Autoencoder(AutoencoderConfig(**values), build_encoder(encoder, channels=channels, image_size=size), traits)


def batch_of(images: torch.Tensor, epoch: int = 0) -> Batch:
    return Batch([images], torch.arange(1, len(images) + 1), None, seed=0, epoch=epoch, step=0)


@pytest.mark.parametrize("size", [8, 27, 28, 32, 33, 64])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_output_has_the_size_of_the_input(size, channels):
    method = build(size, channels)
    images = torch.rand(2, channels, size, size)
    found = method.reconstruct(images)
    assert found.shape == images.shape
    assert ((found >= 0) & (found <= 1)).all()
    assert method(batch_of(images)).loss.shape == ()


@pytest.mark.parametrize("encoder", ["resnet-tiny", "resnet18", "mlp"])
def test_any_encoder_has_a_decoder(encoder):
    method = build(32, 3, encoder)
    images = torch.rand(2, 3, 32, 32)
    assert method.reconstruct(images).shape == images.shape


def test_decoder_takes_other_sizes_than_it_was_built_for():
    decoder = Decoder(16, 3, stages=2).eval()
    assert decoder(torch.rand(1, 16, 5, 7), (19, 26)).shape == (1, 3, 19, 26)


def test_halvings_mirror_strides_of_two():
    assert [halved((33, 8), times) for times in range(4)] == [(33, 8), (17, 4), (9, 2), (5, 1)]
    assert [count_halvings(size, 4) for size in (4, 5, 8, 28, 32, 33)] == [0, 1, 1, 3, 3, 4]


def test_latent_is_as_wide_as_asked():
    method = build(latent_dim=7)
    codes = []
    method.bottleneck[1].register_forward_hook(lambda module, inputs, output: codes.append(output))
    assert method.reconstruct(torch.rand(2, 3, 8, 8)).shape == (2, 3, 8, 8)
    assert codes[0].shape == (2, 7)


@pytest.mark.parametrize("corruption", ["masking", "gaussian", "none"])
def test_loss_is_against_the_clean_image(corruption):
    method = build(corruption=corruption, share=0.5)
    images = torch.rand(4, 3, 8, 8)
    batch = batch_of(images, epoch=3)
    corrupted = method.corrupt(images, batch.ids, batch.seed, batch.epoch)
    assert torch.equal(corrupted, images) == (corruption == "none")
    expected = F.mse_loss(method.reconstruct(corrupted), images)
    torch.testing.assert_close(method(batch).loss, expected)


def test_features_are_the_encoders():
    method = build(encoder="resnet-tiny", corruption="none")
    images = torch.rand(4, 3, 8, 8)
    output = method(batch_of(images))
    torch.testing.assert_close(output.features, method.encoder(images).detach())
    assert not output.features.requires_grad


def test_gaussian_noise_has_its_strength():
    grey = torch.full((200, 3, 8, 8), 0.5)
    weak = add_gaussian_noise(grey, 0.05, KEY) - grey  # ten standard deviations from a clip
    assert weak.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert weak.std().item() == pytest.approx(0.05, rel=0.01)
    strong = add_gaussian_noise(grey, 0.4, KEY)
    assert (strong.min(), strong.max()) == (0.0, 1.0)
    assert (strong == 0).float().mean().item() == pytest.approx(0.1056, abs=0.005)  # Φ(−0.5 / 0.4)


@pytest.mark.parametrize(("share", "patch"), [(0.25, 1), (0.5, 4), (0.75, 3)])
def test_masking_takes_its_share_of_whole_patches(share, patch):
    images = torch.rand(200, 3, 16, 16) + 0.1
    masked = mask_patches(images, share, patch, KEY)
    gone = masked == 0
    assert torch.equal(masked, torch.where(gone, 0.0, images))
    assert (gone.all(dim=1) == gone.any(dim=1)).all()  # a pixel is masked in all its channels
    assert gone.float().mean().item() == pytest.approx(share, abs=0.02)
    corners = gone[:, 0, ::patch, ::patch]
    assert torch.equal(corners.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :16, :16], gone[:, 0])


def test_everything_can_be_masked():
    assert mask_patches(torch.ones(200, 1, 4, 4), 1.0, 2, KEY).sum() == 0


@pytest.mark.parametrize("corruption", ["masking", "gaussian"])
def test_corruption_is_a_function_of_seed_epoch_and_id(corruption):
    method = build(corruption=corruption)
    images, ids = torch.rand(6, 3, 8, 8), torch.tensor([4, 8, 15, 16, 23, 42])
    whole = method.corrupt(images, ids, seed=1, epoch=2)
    torch.testing.assert_close(method.corrupt(images[2:4], ids[2:4], seed=1, epoch=2), whole[2:4])
    same_image = images[:1].expand(6, -1, -1, -1)
    drawn = method.corrupt(same_image, ids, seed=1, epoch=2)
    for other in (drawn[1], method.corrupt(same_image, ids, 1, 3)[0], method.corrupt(same_image, ids, 2, 2)[0]):
        assert not torch.equal(drawn[0], other)


def test_corruption_leaves_the_image_alone():
    images = torch.rand(4, 3, 8, 8)
    before = images.clone()
    for corruption in ("gaussian", "masking", "none"):
        build(corruption=corruption).corrupt(images, torch.arange(4), 0, 0)
    assert torch.equal(images, before)


def test_gradients_reach_every_parameter():
    method = build(latent_dim=5)
    method(batch_of(torch.rand(4, 3, 8, 8))).loss.backward()
    assert all(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize("values", [{"share": 1.5}, {"patch": 0}, {"corruption": "blur"}, {"latent_dim": 0}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(UserError, match=f"--method.{next(iter(values))}"):
        method_config("autoencoder", **values)


def test_default_view_is_the_clean_image():
    (view,) = Autoencoder.default_views(Traits(image_size=32, channels=3, mirror=True))
    assert view.to_dict() == {"operations": []}
