"""Autoencoder: sizes, what the loss compares, which choices go together, and bounds of the likelihood."""

import math
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import method_config
from rayssl.pipeline.methods.autoencoder import Autoencoder, AutoencoderConfig
from rayssl.pipeline.methods.base import Batch, Traits
from rayssl.pipeline.models.encoder import build_encoder

BOTTLENECKS = ("plain", "sparse", "contractive", "variational", "conditional")
CORRUPTIONS = ("none", "gaussian", "salt-and-pepper", "masking")


def build(size: int = 8, channels: int = 3, encoder: str = "cnn-small", latent_dim=None, **values) -> Autoencoder:
    torch.manual_seed(0)
    traits = Traits(image_size=size, channels=channels, mirror=True, classes=4)
    net = build_encoder(encoder, channels=channels, image_size=size, latent_dim=latent_dim)
    return Autoencoder(AutoencoderConfig(**values), net, traits)


def batch_of(images: torch.Tensor, epoch: int = 0) -> Batch:
    labels = torch.arange(len(images)) % 4
    return Batch([images], torch.arange(1, len(images) + 1), labels, seed=0, epoch=epoch, step=0)


@pytest.mark.parametrize("size", [8, 27, 32, 65])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("encoder", ["cnn-small", "conv", "deep"])
def test_output_has_the_size_of_the_input(size, channels, encoder):
    method = build(size, channels, encoder)
    images = torch.rand(2, channels, size, size)
    found = method.reconstruct(images)
    assert found.shape == images.shape
    assert ((found >= 0) & (found <= 1)).all()
    assert method(batch_of(images)).loss.shape == ()


@pytest.mark.parametrize("encoder", ["resnet-tiny", "resnet18", "mlp", "linear"])
@pytest.mark.parametrize("latent_dim", [None, 7])
def test_any_encoder_has_a_decoder(encoder, latent_dim):
    method = build(32, 3, encoder, latent_dim)
    images = torch.rand(2, 3, 32, 32)
    assert method.reconstruct(images).shape == images.shape
    if latent_dim is not None:
        assert method.codes(images).shape == (2, 7)


@pytest.mark.parametrize("encoder", ["mobilenet_v3_small", "squeezenet1_1", "swin_t"])
def test_all_that_makes_the_features_of_any_classifier_is_trained(encoder):
    method = build(64, 3, encoder)
    images = torch.rand(2, 3, 64, 64)
    method(batch_of(images)).loss.backward()
    untrained = [name for name, parameter in method.encoder.named_parameters() if parameter.grad is None]
    method.encoder(images).sum().backward()
    assert not [name for name, p in method.encoder.named_parameters() if name in untrained and p.grad is not None]


@pytest.mark.parametrize(("encoder", "bottleneck", "corruption"), product(["deep", "conv"], BOTTLENECKS, CORRUPTIONS))
def test_choices_combine_freely(encoder, bottleneck, corruption):
    method = build(28, 1, encoder, 6, bottleneck=bottleneck, corruption=corruption)
    output = method(batch_of(torch.rand(8, 1, 28, 28)))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_bf16_computes_about_the_same(bottleneck):
    method = build(28, 1, "conv", 6, bottleneck=bottleneck, corruption="none")
    batch = batch_of(torch.rand(8, 1, 28, 28))
    exact = method(batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        output = method(batch)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, exact, rtol=0.02, atol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_loss_is_against_the_clean_image(corruption):
    method = build(corruption=corruption, share=0.5)
    images = torch.rand(4, 3, 8, 8)
    batch = batch_of(images, epoch=3)
    corrupted = method.corrupt(images, batch.ids, batch.seed, batch.epoch)
    assert torch.equal(corrupted, images) == (corruption == "none")
    expected = F.mse_loss(method.reconstruct(corrupted), images)
    torch.testing.assert_close(method(batch).loss, expected)


def test_penalties_are_added_with_their_weight():
    images = torch.rand(4, 3, 8, 8)
    light, heavy = (build(bottleneck="sparse", corruption="none", penalty=penalty) for penalty in (0.0, 2.0))
    code = light.see(images, None, None).code
    normalised = (code - code.mean((0, 2, 3), keepdim=True)) / (
        code.var((0, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    active = torch.sigmoid(normalised).flatten(1).mean(dim=0)
    penalty = (0.05 * (0.05 / active).log() + 0.95 * (0.95 / (1 - active)).log()).sum()
    torch.testing.assert_close(heavy(batch_of(images)).loss - light(batch_of(images)).loss, 2 * penalty)


def test_kl_grows_over_its_warm_up_and_is_spread_over_pixels_beside_a_mean():
    method = build(8, 3, "deep", 5, bottleneck="variational", beta=3.0, kl_warmup_epochs=3, reconstruction="bce")
    assert [method.weight(epoch) for epoch in range(5)] == pytest.approx([0.75, 1.5, 2.25, 3.0, 3.0])
    beside_mean = build(8, 3, "deep", 5, bottleneck="variational", beta=3.0)
    assert beside_mean.weight(0) == pytest.approx(3.0 / (3 * 8 * 8))


def test_features_are_the_encoders():
    method = build(encoder="resnet-tiny", corruption="none")
    images = torch.rand(4, 3, 8, 8)
    output = method(batch_of(images))
    torch.testing.assert_close(output.features, method.encoder(images).detach())
    assert not output.features.requires_grad


@pytest.mark.parametrize("corruption", ["masking", "gaussian", "salt-and-pepper"])
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
    for corruption in CORRUPTIONS:
        build(corruption=corruption).corrupt(images, torch.arange(4), 0, 0)
    assert torch.equal(images, before)


def test_dynamic_binarisation_draws_anew_every_epoch_and_keeps_the_mean():
    method = build(8, 1, "deep", binarize="dynamic")
    grey = torch.full((400, 1, 8, 8), 0.3)
    ids = torch.arange(1, 401)
    drawn = method.target(grey, [0, 0, ids, 0])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.01)
    assert not torch.equal(drawn, method.target(grey, [0, 1, ids, 0]))
    assert torch.equal(drawn, method.target(grey, [0, 0, ids, 0]))


def test_conditional_model_decodes_by_class():
    method = build(8, 1, "deep", 5, bottleneck="conditional", corruption="none").eval()
    z = torch.randn(1, 5).expand(4, 5)
    images = method.images(z, torch.arange(4))
    assert (images[0] - images[1]).abs().max() > 1e-3
    images = torch.rand(4, 1, 8, 8)
    unknown = method.codes(images, torch.full((4,), -1))
    torch.testing.assert_close(unknown, method.encoder(images))
    assert (method.codes(images, torch.zeros(4, dtype=torch.int64)) - unknown).abs().max() > 1e-3


@torch.no_grad()
def test_bounds_are_in_order_and_close_in_on_the_likelihood():
    """Linear decoder, Gaussian likelihood: log p(x) has a closed form, N(x; b, W Wᵀ + σ²I)."""
    method = build(
        3, 1, "linear", 2, bottleneck="variational", reconstruction="gaussian", output="none", sigma=0.5,
        corruption="none",
    ).double().eval()  # fmt: skip
    x = torch.rand(6, 1, 3, 3, dtype=torch.float64)
    layer = method.decoder.layers[0]
    covariance = layer.weight @ layer.weight.T + 0.25 * torch.eye(9)
    exact = torch.distributions.MultivariateNormal(layer.bias, covariance).log_prob(x.flatten(1))
    key = [0, 0, torch.arange(1, 7), 0]
    elbo, few = method.log_likelihood(x, None, 8, key)
    _, many = method.log_likelihood(x, None, 4000, key)
    assert (elbo <= few + 1e-12).all()  # Jensen, draw by draw
    assert (elbo < exact).all()
    torch.testing.assert_close(many, exact, atol=0.1, rtol=0)
    assert (exact - few).mean() > (exact - many).mean() - 0.02


def test_elbo_is_the_training_loss():
    method = build(8, 1, "deep", 5, bottleneck="variational", reconstruction="bce", corruption="none")
    images = torch.rand(64, 1, 8, 8).round()
    batch = batch_of(images)
    loss = torch.stack([method(Batch([images], batch.ids, None, 0, epoch, 0)).loss for epoch in range(60)]).mean()
    elbo, _ = method.log_likelihood(images, None, 60, [1, 0, batch.ids, 0])
    assert loss.item() == pytest.approx(-elbo.mean().item(), rel=2e-3)


@pytest.mark.parametrize("values", [{"share": 1.5}, {"patch": 0}, {"corruption": "blur"}, {"rate": 1.0}])
def test_values_out_of_range_are_refused(values):
    with pytest.raises(UserError, match=f"--method.{next(iter(values))}"):
        method_config("autoencoder", **values)


@pytest.mark.parametrize(
    ("encoder", "values", "message"),
    [
        ("cnn-small", {"bottleneck": "variational"}, "needs a code that is a vector and cnn-small gives a map"),
        ("cnn-small", {"bottleneck": "contractive"}, "BatchNorm makes each output depend"),
        ("deep", {"reconstruction": "bce", "output": "none"}, "bce compares probabilities"),
        ("deep", {"patch": 9}, "--method.patch is 9: images have 8 pixels"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(encoder, values, message):
    with pytest.raises(UserError, match=message):
        build(encoder=encoder, **values)


def test_bce_refuses_what_is_no_probability():
    with pytest.raises(UserError, match=r"pixels in \[0, 1\] and these are in \[-1, -?0\]"):
        build(encoder="deep", reconstruction="bce")(batch_of(-torch.ones(2, 3, 8, 8) * torch.eye(8)))


def test_conditional_model_needs_labels():
    encoder = build_encoder("deep", channels=1, image_size=8)
    with pytest.raises(UserError, match="needs labels and the images have none"):
        Autoencoder(AutoencoderConfig(bottleneck="conditional"), encoder, Traits(8, 1, True))


def test_only_a_model_with_a_likelihood_has_bounds():
    with pytest.raises(UserError, match="a bound of the likelihood needs"):
        build(encoder="deep").log_likelihood(torch.rand(1, 3, 8, 8), None, 1, [0, 0, torch.ones(1).long(), 0])


def test_default_view_is_the_clean_image():
    (view,) = Autoencoder.default_views(Traits(image_size=32, channels=3, mirror=True))
    assert view.to_dict() == {"operations": []}


def test_reference_loss_in_numbers():
    """One image of four pixels by hand."""
    method = build(2, 1, "linear", 1, reconstruction="bce", corruption="none")
    x = torch.tensor([[[[0.0, 1.0], [0.25, 1.0]]]])
    p = method.reconstruct(x).flatten().tolist()
    expected = -sum(t * math.log(q) + (1 - t) * math.log(1 - q) for t, q in zip([0.0, 1.0, 0.25, 1.0], p))
    assert method(Batch([x], torch.ones(1).long(), None, 0, 0, 0)).loss.item() == pytest.approx(expected, rel=1e-5)
