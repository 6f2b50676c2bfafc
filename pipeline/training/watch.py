"""A watch over training: it says when a run is heading for nothing, ends nothing, and changes nothing of the training.

Twice, once each: after the first tenth of the steps, where a loss is what guessing gives, or does not change; half way,
where fewer validation images are told by their neighbours than by an untrained network.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.training.guard import paired_error

SETTLED, LOOKED = 0.1, 0.05  # shares of the steps: after which a loss is looked at, and for how long
HAIR = 0.005  # of the loss at chance: nearer to it nothing was learned
STILL = 1e-6  # of the loss: what changes less does not change

Floats = NDArray[np.float64]


class Watch:
    """Looks at the rows that training logs, and half way at validation kNN.

    `chance` is what each logged loss is where the network guesses; `measure` gives for every validation image whether
    its neighbours tell its class, (Q,) each, by the encoder so far and by an untrained one; None where there are no
    labels. Every worker must call `look` alike.
    """

    def __init__(
        self,
        steps: int,
        chance: Mapping[str, float],
        measure: Callable[[], tuple[Floats, Floats]] | None,
        say: Callable[[str], None],
    ) -> None:
        self.steps, self.chance, self.measure, self.say = steps, chance, measure, say
        self.first = max(1, round(SETTLED * steps))
        self.last = self.first + max(5, round(LOOKED * steps))  # not counted
        self.rows: list[dict[str, Any]] = []

    def see(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of metrics.jsonl, in order."""
        if self.last > self.steps:
            return
        seen = [dict(row) for row in rows if self.first <= row["step"] < self.last]
        self.rows += seen
        if seen and len(self.rows) == self.last - self.first:
            self._tell_losses()

    def look_due(self, step: int) -> bool:
        """Whether to look after so many steps."""
        return self.measure is not None and step == max(1, self.steps // 2)

    def look(self, step: int) -> None:
        """Compare the encoder so far with an untrained one."""
        assert self.measure is not None
        now, untrained = self.measure()
        if float((untrained - now).mean()) > paired_error(untrained, now):
            self.say(
                f"warning: half way, after {step} steps, validation kNN is {100 * now.mean():.1f} %, below the "
                f"{100 * untrained.mean():.1f} % of the untrained network: perhaps the views hide what tells these "
                "images apart (--augment.color 0, --augment.crop 0.5; `rayssl tune` searches)"
            )

    def _tell_losses(self) -> None:
        means = {name: float(np.mean([row[name] for row in self.rows])) for name in ("train/loss", *self.chance)}
        idle = [name for name, chance in self.chance.items() if means[name] > (1 - HAIR) * chance]
        losses = np.array([row["train/loss"] for row in self.rows])
        advice = "try a lower --train.learning-rate, or a longer --train.warmup-epochs"
        for name in idle:
            told = name.removeprefix("train/").replace("_", " ")
            self.say(
                f"warning: after {self.last} of {self.steps} steps the {told} is {means[name]:.3f}, and guessing gives "
                f"{self.chance[name]:.3f}: nothing has been learned yet: {advice}"
            )
        if not idle and np.ptp(losses) <= STILL * abs(means["train/loss"]):
            self.say(f"warning: the loss has been {means['train/loss']:.6g} for {len(losses)} steps: {advice}")
