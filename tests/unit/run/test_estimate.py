"""What a run costs, before it starts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rayssl.pipeline.run import estimate
from rayssl.pipeline.run.estimate import check_disk, sizes_of
from rayssl.pipeline.run.plan import CPU_FLOPS, GPU_FLOPS, Machine, Sizes, image_seconds
from rayssl.pipeline.stages.start import Prepared


def test_room_is_for_the_embeddings_of_every_split(
    prepared: Callable[..., Prepared], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared("run")
    counted: list[int] = []

    def count(config: Any, facts: Any, images: int) -> float:
        counted.append(images)
        return 0.0

    monkeypatch.setattr(estimate, "expected_bytes", count)
    for dataset in (found.dataset, replace(found.dataset, test=None)):
        check_disk(found.config, {}, dataset, found.run)
    assert counted == [43 + 5 + 12, 43 + 5]


def test_a_run_that_trains_nothing_makes_no_pass(prepared: Callable[..., Prepared]) -> None:
    config = prepared("run").config
    assert sizes_of(config, 1e6, 0.0).passes == 1
    assert sizes_of(replace(config, method=None), 1e6, 0.0).passes == 0


def test_the_backward_pass_costs_two_forward_passes() -> None:
    assert image_seconds(Sizes(32, CPU_FLOPS), Machine("cpu", 1)) == 3.0
    assert image_seconds(Sizes(32, CPU_FLOPS), Machine("cpu", 2)) == 1.5
    assert image_seconds(Sizes(32, GPU_FLOPS), Machine("cuda", 16, workers=3)) == 1.0
