"""reconstruct, interpolate, sample and anomalies as a user calls them, on tiny runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from rayssl.jobs.main import main
from rayssl.pipeline.base.progress import Display
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.config import Config
from rayssl.pipeline.evaluation.measure import read_evaluation
from rayssl.pipeline.generate.anomalies import auroc
from rayssl.pipeline.generate.decoder import open_trained
from rayssl.pipeline.generate.interpolate import lerp, slerp
from rayssl.pipeline.generate.sample import FittedCodes, fit_codes, nearest_distance
from rayssl.pipeline.launch.plan import prepare_shown
from rayssl.pipeline.stages.story import run_worker_stages
from rayssl.pipeline.verify import verify

Make = Callable[..., Path]
QUIET = Display(Console(quiet=True))
CODE = {"encoder.name": "deep", "encoder.latent_dim": 4}


@pytest.fixture(scope="module")
def trained(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A tiny run of a system, pre-trained and fine-tuned once."""
    made: dict[str, Path] = {}

    def make(system: str, changes: dict[str, Any] | None = None) -> Path:
        name = f"{system}{sorted((changes or {}).items())}"
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / system
            prepare_shown(tiny_config(system, {**CODE, **(changes or {})}), made[name], "rayssl", QUIET)
            some = "data.classes" in (changes or {})
            run_worker_stages(made[name], ["pretrain"] if some else ["pretrain", "finetune"], Silent())
        return made[name]

    return make


def call(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What a verb prints with --json."""
    assert main([*words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_reconstruct_measures_every_held_out_image(trained, tmp_path, capsys):
    run = trained("denoising-gaussian")
    found = call(["reconstruct", str(run), "--out", str(tmp_path)], capsys)
    table = pq.read_table(tmp_path / "errors.parquet").to_pydict()
    assert len(table["path"]) == 12
    for name in ("reconstruct/mse", "reconstruct/denoised-mse", "reconstruct/corrupted-mse"):
        assert found[name] == pytest.approx(np.mean(table[name]))
        assert read_evaluation(run)["flat"][name] == pytest.approx(found[name])
    assert Image.open(tmp_path / "reconstructions.png").height > 2 * 64


def test_reconstruct_against_the_method_itself(trained, tmp_path, capsys):
    run = trained("conv", {"encoder.name": "conv", "data.image_size": 16})
    found = call(["reconstruct", str(run), "--out", str(tmp_path)], capsys)
    opened = open_trained(run)
    pixels = torch.from_numpy(opened.held_out.square(np.arange(12), 16)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = (opened.method.reconstruct(pixels) - pixels).square().mean().item()
    assert found["reconstruct/mse"] == pytest.approx(expected, rel=1e-5)
    assert "likelihood/negative-elbo" not in found


def test_likelihood_is_recorded_with_its_number_of_draws(trained, tmp_path, capsys):
    run = trained("vae")
    found = call(["reconstruct", str(run), "--draws", "5", "--out", str(tmp_path)], capsys)
    assert found["likelihood/negative-elbo"] >= found["likelihood/iwae-5"]
    (record,) = [r for r in read_evaluation(run)["records"] if r["metric"] == "likelihood/iwae-5"]
    assert "no binarisation, 5 draws of z" in record["protocol"]


def test_fine_tuned_encoder_goes_back_under_its_decoder(trained, tmp_path, capsys):
    run = trained("deep")
    own = call(["reconstruct", str(run), "--out", str(tmp_path / "own")], capsys)
    before = read_evaluation(run)["flat"]["reconstruct/mse"]
    tuned = call(["reconstruct", str(run), "--encoder", str(run), "--out", str(tmp_path / "tuned")], capsys)
    assert tuned["reconstruct/mse"] != own["reconstruct/mse"]
    assert read_evaluation(run)["flat"]["reconstruct/mse"] == before  # the figure is not that of the run's own encoder
    other = trained("deep", {"encoder.latent_dim": 3})
    line = fails(["reconstruct", str(run), "--encoder", str(other)], capsys)
    assert "only a fine-tuned encoder of the same network fits" in line


def test_interpolate_between_a_file_and_a_held_out_image(trained, images, tmp_path, capsys):
    run = trained("deep")
    words = [str(run), str(images / "red" / "0.png"), "3", "--steps", "5", "--out", str(tmp_path)]
    found = call(["interpolate", *words], capsys)
    steps = json.loads((tmp_path / "interpolation.json").read_text())["steps"]
    assert found["path"] == "linear"
    assert [step["w"] for step in steps] == [0, 0.25, 0.5, 0.75, 1]
    assert Image.open(tmp_path / "interpolation.png").width == 7 * (64 + 2)


def test_a_gaussian_prior_is_crossed_along_an_arc(trained, tmp_path, capsys):
    assert call(["interpolate", str(trained("vae")), "0", "1", "--out", str(tmp_path)], capsys)["path"] == "spherical"


def test_slerp_keeps_lengths_and_meets_its_ends():
    a, b = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    assert middle.norm().item() == pytest.approx(2.0)
    torch.testing.assert_close(middle, torch.full((1, 3), 2.0**0.5) * torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), lerp(a, 2 * a, 0.5))
    torch.testing.assert_close(slerp(a, -a, 0.25), lerp(a, -a, 0.25))


def test_grid_over_a_code_of_two_numbers(trained, tmp_path, capsys):
    flat = trained("vae", {"encoder.latent_dim": 2})
    found = call(["interpolate", str(flat), "--grid", "4", "--out", str(tmp_path)], capsys)
    assert found["prior"] == "gaussian"
    assert Image.open(tmp_path / "grid.png").size == (4 * 66, 4 * 66)
    codes = json.loads((tmp_path / "grid.json").read_text())["rows"]
    assert codes == pytest.approx([-2.0537, -0.4125, 0.4125, 2.0537], abs=1e-3)  # Φ⁻¹ of 0.02, 0.34, 0.66, 0.98
    line = fails(["interpolate", str(trained("vae")), "--grid", "4"], capsys)
    assert "--grid needs a code of two numbers" in line
    assert "has 4" in line


def test_sample_follows_its_seed(trained, tmp_path, capsys):
    run = trained("vae")
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        found = call(["sample", str(run), "--count", "20", "--seed", seed, "--out", str(tmp_path / name)], capsys)
    a, b, c = (np.load(tmp_path / name / "samples.npz")["images"] for name in "abc")
    assert a.shape == (20, 16, 16, 3)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert found["distance_to_train"] > 0


def test_sample_of_a_conditional_model_is_a_row_a_class(trained, tmp_path, capsys):
    found = call(["sample", str(trained("cvae")), "--count", "5", "--out", str(tmp_path)], capsys)
    assert found["classes"] == ["blue", "green", "red"]
    saved = np.load(tmp_path / "samples.npz")
    assert saved["labels"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert Image.open(tmp_path / "samples.png").size == (5 * 66, 3 * 66)


@pytest.mark.parametrize("system", ["deep", "vae", "cvae"])
def test_samples_of_fitted_codes(system, trained, tmp_path, capsys):
    run, words = trained(system), ["--codes", "fitted", "--count", "4", "--seed", "3"]
    for name in "ab":
        found = call(["sample", str(run), *words, "--out", str(tmp_path / name)], capsys)
    a, b = (np.load(tmp_path / name / "samples.npz")["images"] for name in "ab")
    assert found["codes"] == "fitted"
    assert len(a) == (12 if system == "cvae" else 4)
    assert np.array_equal(a, b)
    opened = open_trained(run)
    with torch.inference_mode(), opened.computing():
        fitted = fit_codes(opened, 3 if system == "cvae" else 1, lambda done, total: None)
        every = opened.clean(opened.dataset.train, np.arange(len(opened.dataset.train)))
        codes, variance = opened.method.code_distribution(every.x, every.labels)
    of_first = every.labels == 0 if system == "cvae" else torch.ones(len(codes), dtype=torch.bool)
    torch.testing.assert_close(fitted.mean[0], codes[of_first].mean(dim=0), rtol=1e-4, atol=1e-5)
    expected = torch.cov(codes[of_first].T, correction=0) + variance[of_first].mean(dim=0).diag()
    torch.testing.assert_close(fitted.root[0] @ fitted.root[0].T, expected, rtol=1e-3, atol=1e-5)
    assert bool(variance.any()) == (system != "deep")


def test_a_map_is_no_code_to_fit_to(trained, capsys):
    run = trained("denoising-masking", {"encoder.name": "resnet-tiny", "encoder.latent_dim": None})
    assert "is a map: train with --encoder.latent-dim" in fails(["sample", str(run), "--codes", "fitted"], capsys)


def test_fitted_codes_have_the_mean_and_covariance_of_their_class():
    mean, root = torch.tensor([[0.0, 0.0], [3.0, -1.0]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0], [1, 0.5]]])
    noise = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0))
    codes = FittedCodes(mean, root).shape(noise, torch.ones(40_000, dtype=torch.int64))
    torch.testing.assert_close(codes.mean(dim=0), mean[1], rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(codes.T), root[1] @ root[1].T, rtol=0, atol=0.1)


def test_sample_of_a_pixelcnn(trained, tmp_path, capsys):
    sizes = {"encoder.name": "pixelcnn", "encoder.latent_dim": None, "encoder.depth": 2, "encoder.kernel": 3}
    run = trained("pixelcnn", {**sizes, "method.levels": 4, "data.image_size": 8})
    call(["sample", str(run), "--count", "2", "--out", str(tmp_path)], capsys)
    pixels = np.load(tmp_path / "samples.npz")["images"]
    assert set(np.unique(pixels)) <= {0, 85, 170, 255}
    found = call(["anomalies", str(run), "--normal", "red", "--out", str(tmp_path)], capsys)
    assert {"auroc/nats", "auroc/knn"} <= found.keys()
    assert "draws images without a code" in fails(["sample", str(run), "--codes", "fitted"], capsys)
    assert "no code between encoder and decoder" in fails(["interpolate", str(run), "0", "1"], capsys)


def test_a_pixelcnn_tells_how_likely_held_out_images_are(trained, tmp_path, capsys):
    sizes = {"encoder.name": "pixelcnn", "encoder.latent_dim": None, "encoder.depth": 2, "encoder.kernel": 3}
    run = trained("pixelcnn", {**sizes, "method.levels": 4, "data.image_size": 8})
    after_training = read_evaluation(run)["flat"]
    assert {"likelihood/nats", "likelihood/bits-per-dim"} <= after_training.keys()

    found = call(["reconstruct", str(run), "--out", str(tmp_path / "r")], capsys)
    call(["anomalies", str(run), "--normal", "red", "--out", str(tmp_path / "a")], capsys)
    table = pq.read_table(tmp_path / "r" / "errors.parquet").to_pydict()
    scores = pq.read_table(tmp_path / "a" / "anomalies.parquet").to_pydict()
    by_path = dict(zip(scores["path"], scores["nats"], strict=True))
    assert table["likelihood/nats"] == pytest.approx([by_path[path] for path in table["path"]], rel=1e-5)
    assert found["likelihood/nats"] == pytest.approx(np.mean(table["likelihood/nats"]))
    assert found["likelihood/bits-per-dim"] == pytest.approx(found["likelihood/nats"] / np.log(2) / (3 * 8 * 8))
    records = {record["metric"]: record["protocol"] for record in read_evaluation(run)["records"]}
    assert records["likelihood/nats"].startswith("nats an image, no binarisation, exact for 4 levels, 12 evaluation")
    assert records["likelihood/bits-per-dim"].startswith("bits a value, ")
    assert not list(run.rglob("reconstructions.png"))


def test_samples_that_are_copies_would_show():
    train = np.random.default_rng(0).random((50, 12)).astype(np.float32)
    assert nearest_distance(train[:5], train) == pytest.approx(np.zeros(5), abs=1e-3)
    assert nearest_distance(train[:5] + 0.1, train) == pytest.approx(np.full(5, 0.1), rel=1e-3)


def test_anomalies_are_ranked_and_rated(trained, tmp_path, capsys):
    run = trained("vae", {"data.classes": ["red"], "train.epochs": 30})
    opened = open_trained(run).dataset
    assert [set(part.labels.tolist()) for part in (opened.train, opened.test)] == [{2}, {0, 1, 2}]
    found = call(["anomalies", str(run), "-k", "3", "--out", str(tmp_path)], capsys)
    assert found["normal"] == 4  # of 12 test images: the classes of training are what is normal
    table = pq.read_table(tmp_path / "anomalies.parquet").to_pydict()
    assert table["negative-elbo"] == sorted(table["negative-elbo"], reverse=True)
    normal = np.array(table["normal"])
    assert [path.startswith("red") for path in table["path"]] == normal.tolist()
    for name in ("negative-elbo", "error", "knn"):
        assert found[f"auroc/{name}"] == pytest.approx(auroc(np.array(table[name]), ~normal))
    assert found["anomalous"] == 8
    assert found["auroc/error"] > 0.9  # red images are what it has seen
    assert (tmp_path / "anomalies.png").exists()


def test_anomalies_of_another_folder_and_without_a_decoder(trained, finished, images, tmp_path, capsys):
    found = call(["anomalies", str(finished), "--data.path", str(images), "--out", str(tmp_path)], capsys)
    assert found["images"] == 60
    assert found["ranked_by"] == "knn"
    assert "auroc/knn" not in found


def test_auroc_against_its_definition():
    scores, anomalous = np.array([3.0, 1.0, 2.0, 2.0, 0.0]), np.array([True, False, True, False, False])
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[anomalous] for b in scores[~anomalous]]
    assert auroc(scores, anomalous) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("system", "words", "says"),
    [
        ("deep", ["sample"], "cannot sample: its code has no prior; use --codes fitted, or train with"),
        ("deep", ["sample", "--codes", "x"], "Invalid value for '--codes'"),
        ("deep", ["interpolate", "0"], "takes two images and 1 are named"),
        (
            "deep",
            ["interpolate", "0", "99"],
            "99 is not an image file and no number of one of the 12 evaluation images",
        ),
        ("deep", ["interpolate", "0", "1", "--grid", "3"], "leave one of them out"),
        ("deep", ["anomalies", "--normal", "pink"], "--normal pink is not a class: known are blue, green, red"),
        ("deep", ["reconstruct", "--encoder", "nowhere"], "nowhere has no encoder.json"),
        ("cvae", ["interpolate", "0", "1", "--label", "pink"], "name one of blue, green, red"),
    ],
)
def test_wrong_input_is_one_line(system, words, says, trained, capsys):
    assert says in fails([words[0], str(trained(system)), *words[1:]], capsys)


def test_runs_without_a_decoder_say_so(finished, capsys):
    for verb, words in (("reconstruct", []), ("sample", []), ("interpolate", ["0", "1"])):
        assert "only autoencoder and pixelcnn keep a decoder" in fails([verb, str(finished), *words], capsys)


def test_conditional_model_on_unlabelled_images(tiny_config, tmp_path, images):
    from rayssl.pipeline.base.errors import UserError

    folder = tmp_path / "plain"
    folder.mkdir()
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        (folder / f"{i}.png").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="conditional needs labels and the images have none"):
        prepare_shown(tiny_config("cvae", {**CODE, "data.path": str(folder)}), tmp_path / "run", "rayssl", QUIET)
    assert not (tmp_path / "run").exists()


def test_damaged_decoder_is_found(trained, tmp_path, capsys):
    import shutil

    run = tmp_path / "damaged"
    shutil.copytree(trained("deep"), run)
    data = bytearray((run / "decoder.safetensors").read_bytes())
    data[-3] ^= 1
    (run / "decoder.safetensors").write_bytes(data)
    assert [f.path.name for f in verify(run) if f.fault] == ["decoder.safetensors"]
    assert "decoder.safetensors is damaged" in fails(["reconstruct", str(run)], capsys)
