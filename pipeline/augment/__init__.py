"""Augmentation: a declarative spec that draws parameters, and backends that apply them; or a user's own pipeline.

Importing this needs numpy alone; albumentations is imported when the first view is made.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.augment.spec import Spec
from rayssl.pipeline.augment.user_pipeline import UserPipeline
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.settings_files import read_given, shown

__all__ = [
    "Spec",
    "UserPipeline",
    "View",
    "apply_batch",
    "gallery",
    "load_views",
    "side_of",
    "view_from_dict",
    "view_to_dict",
]

View = Spec | UserPipeline


def apply_batch(
    spec: View,
    images: Sequence[NDArray[np.uint8]],
    *,
    size: int,
    seed: int,
    epoch: int,
    ids: NDArray[np.int64],
    view: int,
) -> NDArray[np.uint8]:
    """One view (B, size, size, C) of B images (H, W, C), a function of (seed, epoch, id, view) for each.

    All images have the same number of channels. Raises UserError where a user's own pipeline fails on them.
    """
    if isinstance(spec, UserPipeline):
        return spec.apply_batch(images, size=size, seed=seed, epoch=epoch, ids=ids, view=view)
    from rayssl.pipeline.augment import albumentations_backend

    spec = spec.restricted(images[0].shape[2])
    table = spec.draw(seed=seed, epoch=epoch, ids=np.asarray(ids), view=view)
    return albumentations_backend.apply_table(spec, table, images, size)


def side_of(view: View, image_size: int) -> int:
    """Of a view, in pixels: smaller where a spec has a scale."""
    return view.side(image_size) if isinstance(view, Spec) else image_size


def view_to_dict(view: View) -> dict[str, Any]:
    """Plain JSON values: {"kind": "spec", …} or {"kind": "albumentations", …}."""
    if isinstance(view, UserPipeline):
        return {"kind": "albumentations", "pipeline": view.to_dict()}
    return {"kind": "spec", **view.to_dict()}


def view_from_dict(values: Mapping[str, Any]) -> View:
    """Back from `view_to_dict`; also reads a spec without its kind and what albumentations' A.to_dict returns.

    Raises UserError for anything else.
    """
    if not isinstance(values, Mapping):
        raise UserError(f'augmentation is {shown(values)}: it must be {{"operations": [ … ]}}')
    kind = values.get("kind", "albumentations" if "transform" in values else "spec")
    rest = {key: value for key, value in values.items() if key != "kind"}
    if kind == "spec":
        return Spec.from_dict(rest)
    if kind == "albumentations":
        return UserPipeline.from_dict(rest.get("pipeline", rest))
    raise UserError(f"augmentation kind is {shown(kind)}: must be 'spec' or 'albumentations'")


def load_views(path: str | Path, n_views: int) -> tuple[View, ...]:
    """The views of a file: {"operations": [ … ]}, {"views": [ … ]} with one or `n_views` of them, or A.save's output.

    A single spec is used for every view. Reads JSON, or YAML where the name ends in .yaml or .yml. Raises UserError.
    """
    try:
        values = read_given(Path(path))
        several = values.get("views") if isinstance(values, Mapping) else None
        if several is None:
            return (view_from_dict(values),) * n_views
        if not isinstance(several, list) or len(several) not in (1, n_views):
            found = len(several) if isinstance(several, list) else shown(several)
            raise UserError(f"views is {found}: must be a list of 1 or {n_views}, as many as the method has")
        views = tuple(view_from_dict(view) for view in several)
        return views * n_views if len(views) == 1 else views
    except UserError as error:
        raise UserError(f"augmentation file {path}: {error}") from None


def gallery(
    images: Sequence[NDArray[np.uint8]], views: Sequence[View], *, size: int, seed: int, n_draws: int
) -> NDArray[np.uint8]:
    """A contact sheet (height, width, 3): a row an image: the plain one, then `n_draws` draws of the views in turn.

    Tiles are enlarged by a whole number to at least 64 pixels a side and stand 2 white pixels apart. Of more than three
    channels the first three are shown.
    """
    ids = np.arange(1, len(images) + 1, dtype=np.int64)
    columns = [apply_batch(Spec(), images, size=size, seed=seed, epoch=0, ids=ids, view=0)]
    for draw in range(n_draws):
        epoch, view = divmod(draw, len(views))
        columns.append(apply_batch(views[view], images, size=size, seed=seed, epoch=epoch, ids=ids, view=view))
    return _contact_sheet(np.stack(columns, axis=1))


def _contact_sheet(tiles: NDArray[np.uint8], smallest: int = 64, gap: int = 2) -> NDArray[np.uint8]:
    tiles = tiles[..., :3] if tiles.shape[-1] >= 3 else np.repeat(tiles[..., :1], 3, axis=-1)
    factor = -(-smallest // tiles.shape[2])
    tiles = tiles.repeat(factor, axis=2).repeat(factor, axis=3)
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, side, _, channels = tiles.shape
    sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, channels)
    return np.ascontiguousarray(sheet[: rows * side - gap, : columns * side - gap])
