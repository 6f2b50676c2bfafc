"""A user's own albumentations pipeline, made a function of (seed, epoch, sample id, view).

albumentations keeps a random state in every transform, and `Compose.set_random_seed` gives all of them the same seed,
which makes their decisions one: an image would be flipped exactly when it is made grey. Here all transforms share one
state, so they draw one after the other from it, and it is set again from the key before every image.
"""

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.randomness import hash_key
from rayssl.pipeline.base.settings_files import cut

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version

LONGEST = 300  # letters of what albumentations says
MOST = 10_000  # of any number in a file: of pixels, patches, points; a whole photograph has fewer a side


class UserPipeline:
    """An albumentations transform or composition, applied to one image at a time; not by several threads at once."""

    def __init__(self, pipeline: Any) -> None:
        import albumentations

        composed = isinstance(pipeline, albumentations.Compose)
        self.compose = pipeline if composed else albumentations.Compose([pipeline])
        self._random = random.Random(0)
        self._bits = np.random.Philox(0)
        self.compose.set_random_state(np.random.Generator(self._bits), self._random)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Back from `to_dict`, or from what albumentations' A.to_dict returns. Raises UserError."""
        import albumentations

        if not isinstance(values, Mapping) or not isinstance(values.get("transform"), Mapping):
            raise UserError("not an albumentations pipeline: give a file written by albumentations' A.save")
        _check_numbers(values)
        _check_names(values["transform"])
        try:
            made = cls(albumentations.from_dict(dict(values)))
        except Exception as error:
            raise UserError(f"albumentations cannot read the pipeline: {_one_line(error)}") from None
        _check_needs(made.compose)
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values as albumentations' A.save writes them. Raises UserError for what it cannot write."""
        from albumentations.core.serialization import serialize_enum

        try:
            values: dict[str, Any] = serialize_enum(self.compose.to_dict())
        except Exception as error:
            raise UserError(f"albumentations cannot write the pipeline: {_one_line(error)}") from None
        return values

    def apply_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        size: int,
        seed: int,
        epoch: int,
        ids: NDArray[np.int64],
        view: int,
    ) -> NDArray[np.uint8]:
        """(B, size, size, C) of B images (H, W, C). Raises UserError where the pipeline fails or returns no image."""
        keys = hash_key([seed, "augment", epoch, np.asarray(ids), view, "albumentations"])
        out = np.empty((len(images), size, size, images[0].shape[2]), dtype=np.uint8)
        for i, (image, key) in enumerate(zip(images, keys.tolist(), strict=True)):
            self._reseed(key)
            out[i] = _square(self._call(image), image, size)
        return out

    def _reseed(self, key: int) -> None:
        self._random.seed(key)
        # Setting the state is several times faster than a new generator.
        self._bits.state = {
            "bit_generator": "Philox",
            "state": {"counter": np.zeros(4, np.uint64), "key": np.array([key, 0], np.uint64)},
            "buffer": np.zeros(4, np.uint64),
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }

    def _call(self, image: NDArray[np.uint8]) -> Any:
        try:
            return self.compose(image=image)["image"]
        except Exception as error:
            shape = " × ".join(map(str, image.shape))
            raise UserError(f"the albumentations pipeline fails on an image of {shape}: {_one_line(error)}") from None


def _check_numbers(value: Any) -> None:
    """Raises UserError for a number that no image of ours needs, wherever it stands."""
    stack = [("", value)]
    while stack:
        name, one = stack.pop()
        if isinstance(one, Mapping):
            stack += [(str(key), each) for key, each in one.items() if key != "seed"]
        elif isinstance(one, list | tuple):
            stack += [(name, each) for each in one]
        elif isinstance(one, int | float) and not -MOST <= one <= MOST:
            raise UserError(f"the albumentations pipeline has {cut(name)} {cut(str(one))}: at most {MOST:,} is allowed")


def _check_names(values: Any) -> None:
    """Raises UserError where a transform, or one within it, is none that albumentations builds from a file."""
    from albumentations import __version__
    from albumentations.core.serialization import NON_SERIALIZABLE_REGISTRY, SERIALIZABLE_REGISTRY, shorten_class_name

    stack = [values]
    while stack:
        one = stack.pop()
        name = one.get("__class_fullname__") if isinstance(one, Mapping) else None
        if not isinstance(name, str):
            raise UserError(f"the albumentations pipeline has a transform without a name: {cut(repr(one))}")
        if name.rpartition(".")[2] in NON_SERIALIZABLE_REGISTRY:
            raise UserError(f"the albumentations pipeline has a {cut(name)}, whose code is in no file: leave it out")
        if shorten_class_name(name) not in SERIALIZABLE_REGISTRY:
            raise UserError(
                f"albumentations {__version__} has no transform {cut(repr(name))}: save the pipeline with it"
            )
        inside = one.get("transforms")
        stack += inside if isinstance(inside, list) else []


def _check_needs(transform: Any) -> None:
    """Raises UserError for a transform that wants more than the image: a mask, a text, other images."""
    for one in getattr(transform, "transforms", ()):
        _check_needs(one)
    wants = getattr(transform, "targets_as_params", [])
    if hasattr(transform, "metadata_key") or not set(wants) <= {"image"}:
        name = type(transform).__name__
        raise UserError(f"{name} needs more than the image ({cut(', '.join(map(str, wants)))}): leave it out")


def _square(result: Any, image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    from rayssl.pipeline.data.decode import to_square

    if not isinstance(result, np.ndarray) or result.dtype != np.uint8:
        found = result.dtype if isinstance(result, np.ndarray) else type(result).__name__
        raise UserError(
            f"the albumentations pipeline returns {found}: it must return uint8 images, so leave out what "
            "converts them, such as Normalize, ToFloat and ToTensorV2"
        )
    result = result if result.ndim == 3 else result[..., None]
    if result.shape[2] != image.shape[2]:
        raise UserError(
            f"the albumentations pipeline turns {image.shape[2]} channels into {result.shape[2]}: keep their number"
        )
    return result if result.shape[:2] == (size, size) else to_square(result, size)


def _one_line(error: Exception) -> str:
    return cut(" ".join(str(error).split()), LONGEST) or type(error).__name__
