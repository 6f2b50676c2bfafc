"""Every shipped recipe builds, is explained, and costs nothing to list."""

import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from rayssl.pipeline.augment import view_from_dict, view_to_dict
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.config import for_device, method_name
from rayssl.pipeline.methods import METHODS, load_method
from rayssl.pipeline.methods.base import Traits
from rayssl.pipeline.models.encoder import build_encoder
from rayssl.pipeline.recipes import DEFAULT_SUITE, RECIPES, build_recipe, describe_recipe


def method_of(recipe: str) -> str:
    first = recipe.split("-")[0]
    return first if first in METHODS else "autoencoder"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_builds(name: str, device: str) -> None:
    config = for_device(build_recipe(name), device)
    assert config.on_gpu == {}
    if name.startswith("simclr") and not name.endswith("digits"):
        assert config.encoder.name.endswith("tiny") == (device == "cpu")
    assert config.recipe == name
    assert method_name(config) == method_of(name)
    assert (config.data.path == "") == name.endswith("-folder")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_built_into_a_method(name: str) -> None:
    config = build_recipe(name)
    known = {"digits": (8, 1), "scattered-digits": (24, 1), "mnist": (28, 1), "cifar10": (32, 3)}
    known[""] = (config.data.image_size, 3)
    size, channels = known[config.data.path]
    assert size is not None
    traits = Traits(size, channels, config.augment.mirror is not False, classes=10)
    method = load_method(method_of(name))
    encoder = build_encoder(
        config.encoder.name,
        channels=channels,
        image_size=size,
        stem=config.encoder.stem,
        **asdict(config.encoder.architecture),
    )
    built = method(config.method, encoder, traits)
    assert sum(p.numel() for p in built.parameters()) >= sum(p.numel() for p in encoder.parameters())
    for view in method.default_views(traits):
        assert view_from_dict(view_to_dict(view)) == view
    assert config.train.batch_size > 1
    assert torch.isfinite(torch.tensor(config.train.learning_rate))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_explained(name: str) -> None:
    first = describe_recipe(name).splitlines()[0]
    assert 10 < len(first) < 110
    assert first.rstrip().endswith((".", "?", ":", ")")) or first


def test_all_methods_have_recipes_and_the_suite_compares_them() -> None:
    assert {method_of(name) for name in RECIPES} == set(METHODS)
    # essl is two of them together; byol is SimCLR's like; pixelcnn is there for its likelihood; distill needs a teacher
    assert {method_of(name) for name in DEFAULT_SUITE} == set(METHODS) - {"essl", "byol", "pixelcnn", "distill"}
    assert len({build_recipe(name).data for name in DEFAULT_SUITE}) == 1


def test_digits_are_never_mirrored() -> None:
    for name in RECIPES:
        assert build_recipe(name).augment.mirror is (False if name.endswith(("digits", "mnist")) else None)


@pytest.mark.parametrize(("word", "hint"), [("simclr-cifar", "simclr-cifar10"), ("rotnet-digit", "rotnet-digits")])
def test_an_unknown_recipe_names_the_nearest(word: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"unknown recipe '{word}' .did you mean '{hint}'"):
        build_recipe(word)


def test_listing_recipes_imports_no_torch() -> None:
    code = (
        "import sys; from rayssl.pipeline.recipes import RECIPES, describe_recipe, build_recipe\n"
        "from rayssl.pipeline.base.errors import UserError\n"
        "names = [describe_recipe(name) for name in RECIPES]\n"
        "try: build_recipe('nope')\n"
        "except UserError: pass\n"
        "assert names and not {'torch', 'ray', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
