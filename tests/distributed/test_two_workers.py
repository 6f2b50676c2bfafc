"""Two workers with different data compute what one process does with all of it: values, gradients, curves."""

import cases
import numpy as np
import pytest
import torch
from PIL import Image
from workers import Workers

from rayssl.pipeline.features.extract import BATCH
from rayssl.pipeline.methods import METHODS
from rayssl.pipeline.training.loop import POLL_STEPS

SETTINGS = [
    ("simclr", {"temperature": 0.2}),
    ("simclr", {"projector_layers": 3}),
    ("rotnet", {}),
    ("essl", {"temperature": 0.2}),
    ("autoencoder", {"corruption": "masking", "share": 0.5, "patch": 2}),
    ("autoencoder", {"corruption": "gaussian", "latent_dim": 6}),
    ("autoencoder", {"encoder": "deep", "bottleneck": "sparse", "penalty": 1.0, "learning_rate": 0.01}),
    ("autoencoder", {"encoder": "conv", "bottleneck": "contractive", "penalty": 1.0, "reconstruction": "rmse"}),
    (
        "autoencoder",
        {
            "latent_dim": 6,
            "bottleneck": "conditional",
            "reconstruction": "bce",
            "binarize": "dynamic",
            "corruption": "salt-and-pepper",
            "learning_rate": 1e-4,
        },
    ),
    ("pixelcnn", {"encoder": "pixelcnn", "levels": 4}),
    ("distill", {"teacher": "hog", "dim": 4}),
    (cases.AVERAGED, {}),
    ("byol", {"momentum": 0.9}),
]


def assert_same(found: cases.Arrays, expected: cases.Arrays, tolerance: float) -> None:
    """Every array within `tolerance` of the other, relative to its own norm; or both are zero but for rounding.

    The gradient of a bias before BatchNorm is such a zero.
    """
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error, norm = np.linalg.norm(found[name] - value), np.linalg.norm(value)
        both_zero = max(norm, np.linalg.norm(found[name])) <= 1e-14
        assert both_zero or error <= tolerance * norm, f"{name}: error {error}, norm {norm}"


def test_helpers(workers: Workers):
    for rank, found in enumerate(workers.run(cases.helpers)):
        assert found == {
            "rank": rank,
            "world": 2,
            "broadcast": {"from": 0},
            "any": [False, True, True],
            "mean": [1.5, 5.0],
            "rows": [[0, 1], [10, 11], [12, 13], [14, 15]],
            "empty": [[0, 1]],
        }


def test_one_worker_may_reconstruct_alone(workers: Workers):
    assert workers.run(cases.reconstruct_alone) == [1.5, 1.5]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent(workers: Workers, views, dtype, tolerance):
    alone = cases.nt_xent_case(dtype, views)
    for found in workers.run(cases.nt_xent_case, dtype, views):
        assert_same(found, alone, tolerance)


@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"),
    [(torch.float64, 0.0, 1e-12), (torch.float64, 1e4, 1e-9), (torch.float32, 0.0, 1e-5), (torch.float32, 100.0, 1e-4)],
)
@pytest.mark.parametrize(("shape", "affine"), [((8, 5), True), ((8, 3, 4, 4), True), ((8, 3, 4, 4), False)])
def test_global_batch_norm(workers: Workers, shape, affine, dtype, offset, tolerance):
    alone = cases.batch_norm_case(shape, dtype, affine, offset)
    for found in workers.run(cases.batch_norm_case, shape, dtype, affine, offset):
        assert_same(found, alone, tolerance)


def test_global_batch_norm_under_autocast(workers: Workers):
    alone = cases.autocast_batch_norm_case()
    for found in workers.run(cases.autocast_batch_norm_case):
        np.testing.assert_array_equal(found["y"], alone["y"])
        np.testing.assert_array_equal(found["mean"], alone["mean"])
        assert_same(found, alone, 2e-2)  # a gradient in bf16 is itself 1e-2 away from one in fp32


@pytest.mark.parametrize(("name", "values"), SETTINGS)
def test_gradients_of_methods_in_fp32(workers: Workers, name, values):
    alone = gradients(cases.train_case(name, values, torch.float32, 1))
    for found in workers.run(cases.train_case, name, values, torch.float32, 1):
        together, reference = (np.concatenate([g.ravel() for g in x.values()]) for x in (gradients(found), alone))
        assert np.linalg.norm(together - reference) <= 1e-5 * np.linalg.norm(reference)


@pytest.mark.parametrize(
    ("name", "values"), [*SETTINGS[:5], *SETTINGS[-3:]]
)  # over convolutions with BatchNorm, where a bit matters
def test_forward_is_bit_identical_and_gradients_close_at_32_pixels(workers: Workers, name, values):
    """Where one bit of a statistic differed, ReLUs would open that are shut in the other run: gradients 1e-3 apart.

    Drawn noise and dense layers are not promised to the bit: on some CPUs torch's logarithm and matrix product round
    otherwise at another place in a batch.
    """
    alone = cases.features_case(name, values, 64, 32)
    for found in workers.run(cases.features_case, name, values, 64, 32):
        np.testing.assert_array_equal(found["features"], alone["features"])
        error = np.linalg.norm(found["gradient"] - alone["gradient"])
        assert error <= 1e-5 * np.linalg.norm(alone["gradient"])


def test_features_of_drawn_noise_and_a_dense_layer_are_close_at_32_pixels(workers: Workers):
    alone = cases.features_case(*SETTINGS[5], 64, 32)["features"]
    for found in workers.run(cases.features_case, *SETTINGS[5], 64, 32):
        assert np.linalg.norm(found["features"] - alone) <= 1e-6 * np.linalg.norm(alone)


def test_embeddings_are_the_same_bits_whatever_the_number_of_workers(workers: Workers):
    alone = cases.embedded_case(3 * BATCH + 5)
    for found in workers.run(cases.embedded_case, 3 * BATCH + 5):
        np.testing.assert_array_equal(found, alone)


def gradients(results: cases.Arrays) -> cases.Arrays:
    return {name: value for name, value in results.items() if name.startswith("grad.")}


@pytest.mark.parametrize(("name", "values"), [*SETTINGS[::2], (cases.AVERAGED, {})])
def test_curves_and_weights_over_50_steps_in_fp64(workers: Workers, name, values):
    alone = cases.train_case(name, values, torch.float64, 50)
    for found in workers.run(cases.train_case, name, values, torch.float64, 50):
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-9, atol=0)
        assert_same(found, alone, 1e-9)


@pytest.mark.parametrize("name", cases.TOYS)
def test_a_step_and_a_start_of_the_methods_own(workers: Workers, name):
    alone = cases.own_step_case(name)
    for found in workers.run(cases.own_step_case, name):
        assert_same(found, alone, 1e-9)


def test_curve_and_weights_by_muon(workers: Workers):
    """Its orthogonal steps enlarge small differences of gradients, within bounds."""
    settings = ("simclr", {"temperature": 0.2, "learning_rate": 0.02})
    alone = cases.train_case(*settings, torch.float64, 50, "muon")
    for found in workers.run(cases.train_case, *settings, torch.float64, 50, "muon"):
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-8, atol=0)
        assert_same(found, alone, 1e-8)


def test_every_method_is_computed_by_two_workers():
    assert {name for name, _ in SETTINGS} == {*METHODS, cases.AVERAGED}


def test_the_moving_average_of_the_tests_moves():
    """Else the curves above would say nothing of `after_step` and frozen parameters."""
    state = cases.train_case(cases.AVERAGED, {}, torch.float64, 2)
    assert not any(name.startswith("grad.target.") for name in state)
    method, _ = cases.build(cases.AVERAGED, {}, torch.float64)
    followed = dict(method.target.named_parameters())  # type: ignore[union-attr]
    assert followed
    assert all((state[f"state.target.{name}"] != value.numpy()).any() for name, value in followed.items())


def test_workers_stop_and_save_together_whoever_is_asked(workers: Workers):
    """A worker that went on alone would wait for the others for ever."""
    expected = {"ended": 2 * POLL_STEPS, "kept": [POLL_STEPS, 2 * POLL_STEPS]}
    assert workers.run(cases.stop_case) == [{"rank 0": expected, "rank 1": expected}] * 2


def test_a_guard_decides_once_for_all_workers(workers: Workers, tmp_path):
    rng = np.random.default_rng(0)
    for label, (low, high) in {"dark": (0, 128), "light": (128, 256)}.items():
        for part in ("train", "test"):
            (tmp_path / part / label).mkdir(parents=True)
        for number in range(120):
            pixels = rng.integers(low, high, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / ("train" if number < 118 else "test") / label / f"{number}.png")
    alone = cases.guard_case(str(tmp_path))
    assert alone["ends"] == [False, True]
    assert alone["facts"]["best_step"] == 0
    assert alone["facts"]["stopped"] == 4
    alone["weights"] = pytest.approx(alone["weights"], rel=1e-12)  # a sum, whose order is the threads'
    assert workers.run(cases.guard_case, str(tmp_path)) == [alone, alone]
