"""The search space: which operations, how often, how strong, in which order, and other values of the config.

A candidate is a flat dict of parameters by name, `color.strength` or `method.temperature`; the space makes its spec.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rayssl.pipeline.augment.spec import (
    ColorJitter,
    Cutout,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    HorizontalFlip,
    Invert,
    Operation,
    QuarterTurn,
    RandomResizedCrop,
    Rotation,
    Solarize,
    Spec,
    Translation,
    VerticalFlip,
)
from rayssl.pipeline.base.errors import UserError, nearest
from rayssl.pipeline.base.randomness import uniform
from rayssl.pipeline.base.settings_files import cut, read_given, shown

Value = float | str
Candidate = dict[str, Value]

LARGEST = 1e100  # end of a range: between larger ones a difference may be infinite
MOST_STEPS = 10**9
LEAST_P = 0.05  # an operation that is applied to fewer images is left out


@dataclass(frozen=True)
class Parameter:
    """A number within [low, high], or one of several values."""

    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    values: tuple[Value, ...] = ()

    def at(self, u: float) -> Value:
        """The value at `u` in [0, 1): uniform u make a uniform choice (of the logarithm where `log`)."""
        if self.values:
            return self.values[int(u * len(self.values))]
        if self.step is not None:
            return self._stepped(int(u * (self._steps + 1)))
        if self.log:
            return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
        return self.low + u * (self.high - self.low)

    @property
    def _steps(self) -> int:
        """How often the step fits between the ends."""
        assert self.step is not None
        return math.floor((self.high - self.low) / self.step + 1e-9)

    def _stepped(self, steps: int) -> float:
        assert self.step is not None
        return round(self.low + self.step * min(steps, self._steps), 6)

    def levels(self, count: int) -> list[Value]:
        """At most `count` values from one end to the other."""
        if self.values:
            return list(self.values)
        if count == 1 or self.low == self.high:
            return [self.at(0.5) if self.low != self.high else self.low]
        shares = [i / (count - 1) * (1 - 1e-9) for i in range(count)]
        return list(dict.fromkeys(self.at(share) if self.step else _rounded(self.at(share)) for share in shares))

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.values) == 1 or (not self.values and self.low == self.high)

    def clip(self, value: Value) -> Value:
        """The nearest value that is allowed."""
        if self.values or isinstance(value, str):
            return value if value in self.values else self.values[0]
        value = min(max(float(value), self.low), self.high)
        return value if self.step is None else self._stepped(round((value - self.low) / self.step))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: {"values": […]} or {"low": …, "high": …}, with step and log where they say something."""
        if self.values:
            return {"values": list(self.values)}
        shape = {**({"step": self.step} if self.step is not None else {}), **({"log": True} if self.log else {})}
        return {"low": self.low, "high": self.high, **shape}


def _rounded(value: Value) -> Value:
    return value if isinstance(value, str) else float(f"{value:.6g}")


SOMETIMES = Parameter(0.0, 1.0, step=0.1)
SELDOM = Parameter(0.0, 0.5, step=0.1)


@dataclass(frozen=True)
class Family:
    """An operation of the spec: how its searched parameters make it, their ranges, and usual values."""

    build: Callable[[Mapping[str, Any]], Operation]
    parameters: dict[str, Parameter]  # p is always among them
    usual: dict[str, Value]  # as the SimCLR paper has them, where it has them


def _color(values: Mapping[str, Any]) -> Operation:
    # Strength s as in SimCLR's appendix A: brightness, contrast and saturation 0.8 s, hue 0.2 s.
    factor, hue = 0.8 * values["strength"], 0.2 * values["strength"]
    return ColorJitter(p=values["p"], brightness=factor, contrast=factor, saturation=factor, hue=hue)


# By the names of --tune.space, in the order in which they are applied unless that is searched as well. A new operation
# is one entry. Strengths: smallest area of a crop; largest turn in degrees; largest shift, and side of what is cut out,
# as shares of the side; largest gamma; largest sigma of a blur in pixels, of noise as a share of full brightness.
FAMILIES: dict[str, Family] = {
    "crop": Family(
        lambda v: RandomResizedCrop(p=v["p"], scale=(v["scale"], 1.0)),
        {"p": SOMETIMES, "scale": Parameter(0.08, 0.9)},
        {"p": 1.0, "scale": 0.2},
    ),
    "flip": Family(lambda v: HorizontalFlip(p=v["p"]), {"p": Parameter(values=(0.0, 0.5))}, {"p": 0.5}),
    "upside-down": Family(lambda v: VerticalFlip(p=v["p"]), {"p": Parameter(values=(0.0, 0.5))}, {"p": 0.5}),
    "turns": Family(lambda v: QuarterTurn(p=v["p"]), {"p": Parameter(values=(0.0, 0.75))}, {"p": 0.75}),
    "rotation": Family(
        lambda v: Rotation(p=v["p"], degrees=(-v["degrees"], v["degrees"])),
        {"p": SOMETIMES, "degrees": Parameter(5.0, 90.0)},
        {"p": 0.5, "degrees": 30.0},
    ),
    "shift": Family(
        lambda v: Translation(p=v["p"], share=(-v["share"], v["share"])),
        {"p": SOMETIMES, "share": Parameter(0.05, 0.4)},
        {"p": 0.5, "share": 0.15},
    ),
    "color": Family(_color, {"p": SOMETIMES, "strength": Parameter(0.1, 1.5)}, {"p": 0.8, "strength": 0.5}),
    "gamma": Family(
        lambda v: Gamma(p=v["p"], gamma=(1 / v["gamma"], v["gamma"])),
        {"p": SOMETIMES, "gamma": Parameter(1.1, 3.0, log=True)},
        {"p": 0.5, "gamma": 1.5},
    ),
    "grey": Family(lambda v: Grayscale(p=v["p"]), {"p": SELDOM}, {"p": 0.2}),
    "solarize": Family(lambda v: Solarize(p=v["p"]), {"p": SELDOM}, {"p": 0.2}),
    "invert": Family(lambda v: Invert(p=v["p"]), {"p": SELDOM}, {"p": 0.5}),
    "blur": Family(
        lambda v: GaussianBlur(p=v["p"], sigma=(0.1, v["sigma"])),
        {"p": SOMETIMES, "sigma": Parameter(0.3, 2.0)},
        {"p": 0.5, "sigma": 1.0},
    ),
    "noise": Family(
        lambda v: GaussianNoise(p=v["p"], sigma=(0.0, v["sigma"])),
        {"p": SOMETIMES, "sigma": Parameter(0.02, 0.3)},
        {"p": 0.5, "sigma": 0.1},
    ),
    "cutout": Family(
        lambda v: Cutout(p=v["p"], size=(min(0.1, v["size"]), v["size"])),
        {"p": SOMETIMES, "size": Parameter(0.1, 0.6)},
        {"p": 0.5, "size": 0.4},
    ),
}
# How a strength is written beside the name of its operation; others are the number alone.
STRENGTHS = {"crop": "{}–1", "rotation": "±{}°", "shift": "±{}"}
DEFAULT = ("crop", "flip", "rotation", "color", "grey", "solarize", "blur", "cutout")


@dataclass(frozen=True)
class Space:
    """What a candidate may be.

    `parameters` by name: `<operation>.<parameter>`, `<operation>.place` where the order is searched, and paths of the
    config. `one_branch`: only the first view is augmented, the others are the plain image.
    """

    operations: tuple[str, ...]
    parameters: dict[str, Parameter] = field(default_factory=dict)
    one_branch: bool = False

    def __post_init__(self) -> None:
        if all(parameter.fixed for parameter in self.parameters.values()):
            raise UserError(
                f"--tune.space {','.join(self.operations)} has one candidate only: there is nothing to search"
            )

    @property
    def config_paths(self) -> list[str]:
        """The parameters that are paths of the config."""
        return [name for name in self.parameters if name.split(".")[0] not in FAMILIES]

    def draw(self, seed: int, number: int) -> Candidate:
        """Candidate `number` of a random search: a function of the seed and the number alone."""
        return {
            name: parameter.at(float(uniform([seed, "tune", number, name], 1)[0]))
            for name, parameter in self.parameters.items()
        }

    def grid(self, levels: int) -> Iterator[Candidate]:
        """Every combination of at most `levels` values of every parameter; what is switched off counts once."""
        names, seen = list(self.parameters), set()
        for values in itertools.product(*(self.parameters[name].levels(levels) for name in names)):
            candidate = self.without_idle(dict(zip(names, values)))
            key = json.dumps(candidate, sort_keys=True)
            if key not in seen:
                seen.add(key)
                yield candidate

    def grid_size(self, levels: int) -> int:
        """How many combinations there are, before those that come to the same are left out."""
        return math.prod(len(parameter.levels(levels)) for parameter in self.parameters.values())

    def without_idle(self, candidate: Candidate) -> Candidate:
        """The candidate with all values of operations that it does not apply at their lowest."""
        idle = {name for name in self.operations if not applies(candidate, name)}

        def of_idle(name: str) -> Value:
            levels = self.parameters[name].levels(2)
            return min(levels) if name.endswith(".p") else levels[0]

        return {name: of_idle(name) if name.split(".")[0] in idle else value for name, value in candidate.items()}

    def pairs(self) -> list[Candidate]:
        """Each operation alone and each two together, at their usual strengths (SimCLR, section 3.1 and figure 5)."""
        usual = {f"{name}.{key}": value for name in self.operations for key, value in FAMILIES[name].usual.items()}
        rest = {name: parameter.levels(3)[0] for name, parameter in self.parameters.items() if name not in usual}
        chosen = [(name,) for name in self.operations] + list(itertools.combinations(self.operations, 2))
        return [
            {**rest, **{name: 0.0 if _is_off(name, pair) else value for name, value in usual.items()}}
            for pair in chosen
        ]

    def on(self, candidate: Candidate) -> list[str]:
        """The operations that a candidate applies, in their order."""
        on = [name for name in self.operations if applies(candidate, name)]
        return sorted(on, key=lambda name: (name != "crop", candidate.get(f"{name}.place", 0.0)))

    def spec(self, candidate: Candidate) -> Spec:
        """The augmentation of a candidate; raises UserError where a value is outside its range."""
        return Spec(tuple(FAMILIES[name].build(_of(candidate, name)) for name in self.on(candidate)))

    def text(self, candidate: Candidate) -> str:
        """The operations of a candidate: `crop 0.2–1, p 1 · color 0.5, p 0.8`."""
        return " · ".join(_operation_text(name, candidate) for name in self.on(candidate)) or "nothing"

    def views(self, candidate: Candidate, count: int) -> tuple[Spec, ...]:
        """The specs of all views."""
        others = Spec() if self.one_branch else self.spec(candidate)
        return (self.spec(candidate), *(others,) * (count - 1))

    def changes(self, candidate: Candidate) -> dict[str, Value]:
        """The values of the config that a candidate sets, by path."""
        return {name: candidate[name] for name in self.config_paths}

    def for_channels(self, channels: int) -> "Space":
        """Without the operations that mean nothing for images of so many channels."""
        kept = tuple(
            name
            for name in self.operations
            if FAMILIES[name].build(FAMILIES[name].usual).restricted(channels) is not None
        )
        idle = set(self.operations) - set(kept)
        return replace(
            self,
            operations=kept,
            parameters={name: value for name, value in self.parameters.items() if name.split(".")[0] not in idle},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "operations": list(self.operations),
            "parameters": {name: parameter.to_dict() for name, parameter in self.parameters.items()},
            "one_branch": self.one_branch,
        }


def applies(candidate: Mapping[str, Any], operation: str) -> bool:
    """Whether a candidate applies an operation."""
    return float(candidate[f"{operation}.p"]) >= LEAST_P


def short(value: Any) -> str:
    """A value for people: three digits of a number."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _operation_text(name: str, candidate: Candidate) -> str:
    strengths = [candidate[f"{name}.{key}"] for key in FAMILIES[name].parameters if key != "p"]
    texts = [STRENGTHS.get(name, "{}").format(short(strength)) for strength in strengths]
    return f"{' '.join([name, *texts])}, p {short(candidate[f'{name}.p'])}"


def _is_off(parameter: str, pair: Sequence[str]) -> bool:
    operation, _, key = parameter.partition(".")
    return key == "p" and operation not in pair


def _of(candidate: Candidate, operation: str) -> dict[str, Value]:
    return {key: candidate[f"{operation}.{key}"] for key in FAMILIES[operation].parameters}


def build_space(
    operations: Sequence[str],
    *,
    ranges: Mapping[str, Parameter] | None = None,
    others: Mapping[str, Parameter] | None = None,
    order: bool = False,
    one_branch: bool = False,
) -> Space:
    """The space over some of FAMILIES; `ranges` replace those of an operation, `others` are paths of the config.

    `order`: the order of the operations is searched too. Raises UserError for an unknown or repeated name.
    """
    for name in operations:
        if name not in FAMILIES:
            raise UserError(
                f"--tune.space has an unknown operation '{cut(name)}'{nearest(name, FAMILIES)}: known are "
                f"{', '.join(FAMILIES)}"
            )
    if len(set(operations)) < len(operations) or not operations:
        raise UserError(f"--tune.space {cut(','.join(operations))}: name every operation once, e.g. crop,color,blur")
    names = tuple(name for name in FAMILIES if name in operations)
    parameters = {f"{name}.{key}": value for name in names for key, value in FAMILIES[name].parameters.items()}
    for name, parameter in (ranges or {}).items():
        if name not in parameters:
            raise UserError(
                f"--tune.space has an unknown range '{cut(name)}'{nearest(name, parameters)}: known are "
                f"{', '.join(parameters)}"
            )
        parameters[name] = parameter
    if order:
        parameters |= {f"{name}.place": Parameter(0.0, 1.0) for name in names if name != "crop"}
    space = Space(names, {**parameters, **(others or {})}, one_branch)
    _check_ranges(space)
    return space


def _check_ranges(space: Space) -> None:
    """Both ends of every range must make an operation."""
    for name, parameter in space.parameters.items():
        if not parameter.values and not _is_range(parameter.low, parameter.high):
            raise UserError(f"the range of {name} is {parameter.low} to {parameter.high}: low must be at most high")
    for name in space.operations:
        for end in (0, -1):
            values = {key: space.parameters[f"{name}.{key}"].levels(2)[end] for key in FAMILIES[name].parameters}
            try:
                FAMILIES[name].build(values)
            except (UserError, ZeroDivisionError, TypeError) as error:
                raise UserError(f"--tune.space: the range of {name} goes too far: {error}") from None


def read_space(text: str) -> tuple[list[str], dict[str, Any]]:
    """Names, and further settings, of `crop,color,blur` or of a JSON or YAML file.

    A file is {"operations": {"crop": {"scale": [0.1, 0.9]}, "color": {}}, "order": true, "config":
    {"method.temperature": {"low": 0.05, "high": 0.5, "log": true}}}; "operations" may be a list of names. Raises
    UserError.
    """
    path = Path(text)
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        return [name.strip() for name in text.split(",") if name.strip()], {}
    values = _read_file(path)
    unknown = set(values) - {"operations", "order", "config", "one_branch"}
    operations = values.get("operations")
    if unknown or not isinstance(operations, dict | list):
        raise UserError(
            f"--tune.space {path} has the keys {cut(', '.join(values)) or 'of nothing'}: it must be "
            '{"operations": {"crop": {}, …}, "order": true, "config": {}}, the last two if you like'
        )
    ranges: dict[str, Parameter] = {}
    for name, own in operations.items() if isinstance(operations, dict) else ():
        if not isinstance(own, Mapping):
            raise UserError(f'--tune.space {path}: {cut(name)} is {shown(own)}: it must be {{"p": [0, 1], …}}')
        ranges |= {f"{name}.{key}": parameter_from(f"{name}.{key}", value) for key, value in own.items()}
    others = values.get("config", {})
    if not isinstance(others, Mapping):
        raise UserError(
            f'--tune.space {path}: config is {shown(others)}: it must be {{"method.temperature": [0.1, 0.5]}}'
        )
    others = {name.replace("-", "_"): parameter_from(name, value) for name, value in others.items()}
    settings: dict[str, Any] = {"ranges": ranges, "others": others}
    settings |= {name: values[name] is True for name in ("order", "one_branch") if name in values}
    return [str(name) for name in operations], settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = read_given(path)
    except UserError as error:
        raise UserError(f"--tune.space {path}: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f'--tune.space {path} is no object: it must be {{"operations": {{"crop": {{}}}}}}')
    return values


def parameter_from(name: str, value: Any) -> Parameter:
    """[low, high], {"low": …, "high": …, "log": true, "step": …}, {"values": […]} or one fixed value."""
    if isinstance(value, Mapping) and set(value) == {"values"} and isinstance(value["values"], list | tuple):
        if value["values"] and all(map(_is_choice, value["values"])):
            return Parameter(values=tuple(value["values"]))
    elif isinstance(value, Mapping) and {"low", "high"} <= set(value) <= {"low", "high", "log", "step"}:
        shape = Parameter(value["low"], value["high"], value.get("step"), bool(value.get("log", False)))
        if _is_range(shape.low, shape.high) and _is_step(shape) and (not shape.log or shape.low > 0):
            return shape
    elif isinstance(value, list | tuple) and len(value) == 2 and _is_range(*value):
        return Parameter(float(value[0]), float(value[1]))
    elif value is not None and _is_choice(value):
        return Parameter(values=(value,))
    raise UserError(
        f"the range of {cut(name)} is {shown(value)}: it must be [low, high], "
        '{"low": …, "high": …, "log": true} with low at most high (above 0 for log, as a "step" must be), or '
        '{"values": […]}'
    )


def _is_range(low: Any, high: Any) -> bool:
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    return numbers and -LARGEST <= low <= high <= LARGEST


def _is_step(shape: Parameter) -> bool:
    return shape.step is None or (_is_range(0, shape.step) and shape.step * MOST_STEPS > shape.high - shape.low)


def _is_choice(value: Any) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, int | float) and abs(value) < math.inf)
