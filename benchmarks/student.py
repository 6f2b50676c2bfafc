"""How much quicker a distilled student embeds than its teacher.

    python benchmarks/student.py RUN --images 1000

RUN is a finished run of `distill-folder`. Both see the first test images, each at the size that it takes, from the
files to the features, in turns; what is printed are medians over the rounds, with the lowest and highest ratio.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from runs import facts

from rayssl.pipeline.base.device import plain_precision
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.base.reporter import Silent
from rayssl.pipeline.features.extract import embed_images
from rayssl.pipeline.methods.distill import DistillConfig
from rayssl.pipeline.models.encoder import Encoder
from rayssl.pipeline.models.export import load_encoder
from rayssl.pipeline.models.teachers import build_teacher
from rayssl.pipeline.run.context import Work


def main() -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    work = Work.open(options.run, Silent())
    encoders = {"student": load_encoder(options.run), "teacher": teacher_of(work)}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(options.rounds):
        for name, encoder in encoders.items():
            seconds[name].append(seconds_to_embed(work, encoder, options.images))
    ratios = [teacher / student for student, teacher in zip(seconds["student"], seconds["teacher"], strict=True)]
    found = {
        name: {
            "name": encoder.name,
            "pixels": encoder.image_size,
            "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "images_per_s": round(options.images / statistics.median(seconds[name]), 1),
        }
        for name, encoder in encoders.items()
    }
    for name, row in found.items():
        print(
            f"{name:8} {row['name']} at {row['pixels']} px, {row['parameters']:,} parameters: {row['images_per_s']}/s"
        )
    times = [round(statistics.median(ratios), 2), round(min(ratios), 2), round(max(ratios), 2)]
    print(f"the student is {times[0]} times as quick [{times[1]}, {times[2]}], on {torch.get_num_threads()} threads")
    if options.out is not None:
        write_json(options.out, {**facts("student", ""), **found, "times": times, "threads": torch.get_num_threads()})
    return 0


def teacher_of(work: Work) -> Encoder:
    """The network that the run's student has learned from."""
    settings, data = work.config.method, work.config.data
    if not isinstance(settings, DistillConfig):
        raise UserError(f"{work.run} is no run of distill-folder")
    teacher = build_teacher(
        settings.teacher, settings.teacher_weights, channels=data.channels or 3, image_side=work.dataset.image_size
    )
    if not isinstance(teacher, Encoder):
        raise UserError(f"{work.run}: the teacher is {settings.teacher}, which is no network")
    return teacher.to(work.device)


def seconds_to_embed(work: Work, encoder: Encoder, count: int) -> float:
    """From the files of so many test images to their features."""
    test = work.at_size(encoder.image_size).test
    assert test is not None
    images = test.select(np.arange(min(count, len(test))))
    began = time.perf_counter()
    embed_images(encoder.to(work.device), images, device=work.device, precision=plain_precision(work.precision))
    return time.perf_counter() - began


if __name__ == "__main__":
    raise SystemExit(main())
