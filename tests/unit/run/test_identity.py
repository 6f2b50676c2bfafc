"""What decides whether a run folder is continued: it must not change under runs that exist."""

import json
from pathlib import Path

from rayssl.pipeline import config as configuration
from rayssl.pipeline.run.folder import stage_key
from rayssl.pipeline.run.identity import continue_run, identity

WRITTEN = Path(__file__).with_name("config_of_a_simclr_run.json")  # by a version that told methods by their class


def test_a_config_of_before_is_read_and_written_alike() -> None:
    config = configuration.load(WRITTEN)
    assert configuration.method_name(config) == "simclr"
    assert configuration.to_dict(config) == json.loads(WRITTEN.read_text())
    assert continue_run(config, configuration.override(config, {"train.epochs": 500}), Path("run")).train.epochs == 500


def test_the_key_of_a_run_of_before_is_the_same() -> None:
    assert stage_key(identity(configuration.load(WRITTEN)), "") == "84ae1410007fbe94"
