"""Between two images: their codes mixed and decoded; and a grid over a code of two numbers.

Shapes: S steps, D latent dimensions.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayssl.pipeline.base.device import to_float
from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import write_json
from rayssl.pipeline.data import decode, to_square
from rayssl.pipeline.data.decode import load_size_of
from rayssl.pipeline.data.shown import Shown
from rayssl.pipeline.generate.decoder import Clean, Trained
from rayssl.pipeline.generate.reconstruct import squared_error, to_pixels
from rayssl.pipeline.methods.base import HasCodes

EDGE = 0.98  # a grid over a Gaussian prior covers so much of it in each direction


def interpolate(trained: Trained, first: str, second: str, steps: int, label: str | None, out: Path) -> dict[str, Any]:
    """Write interpolation.png and interpolation.json into `out`, and return what is in the latter.

    `first`, `second`: image files, or the number of an evaluation image. The row is A, its way to B by codes, and B.
    """
    method = require_codes(trained)
    a, b = (read_end(trained, name, label) for name in (first, second))
    with torch.inference_mode(), trained.computing():
        codes = [method.codes(end.x, end.labels).float() for end in (a, b)]
        spherical = method.has_prior
        weights = torch.linspace(0, 1, steps).tolist()
        mix = slerp if spherical else lerp
        path = torch.cat([mix(codes[0], codes[1], w) for w in weights])
        # A class is no number: the nearer end's.
        labels = None if a.labels is None or b.labels is None else torch.cat(
            [a.labels if w < 0.5 else b.labels for w in weights]
        )  # fmt: skip
        images = method.images(path, labels)
    rows = [
        {
            "w": w,
            "mse_to_a": float(squared_error(image[None], a.x)),
            "mse_to_b": float(squared_error(image[None], b.x)),
            "step_mse": float(squared_error(image[None], images[max(i - 1, 0)][None])),
        }
        for i, (w, image) in enumerate(zip(weights, images, strict=True))
    ]
    from rayssl.pipeline.report.galleries import save_contact_sheet

    save_contact_sheet([to_pixels(torch.cat([a.x, images.float(), b.x]))], out / "interpolation.png")
    found = {"a": first, "b": second, "path": "spherical" if spherical else "linear",
             "code_distance": float((codes[0] - codes[1]).norm()), "steps": rows}  # fmt: skip
    write_json(out / "interpolation.json", found)
    return found


def draw_grid(trained: Trained, side: int, label: str | None, out: Path) -> dict[str, Any]:
    """Write grid.png, side × side images decoded from a code of two numbers, and grid.json with the codes."""
    method = require_codes(trained)
    images = trained.held_out
    with torch.inference_mode(), trained.computing():
        batch = trained.clean(images, np.arange(min(len(images), 1_000)))
        codes = method.codes(batch.x, batch.labels).float()
        if codes[0].numel() != 2:
            raise UserError(
                f"--grid needs a code of two numbers and that of {trained.run} has {codes[0].numel()}: "
                "train with --encoder.latent-dim 2, or name two images"
            )
        low, high = codes.quantile(0.01, dim=0), codes.quantile(0.99, dim=0)
        share = torch.linspace(1 - EDGE, EDGE, side, device=codes.device)
        axes = (
            [normal_quantile(share)] * 2 if method.has_prior else [torch.lerp(low[i], high[i], share) for i in (0, 1)]
        )
        z = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1).view(-1, 2)
        labels = None if not method.conditions else class_of(trained, label).expand(len(z))
        found = to_pixels(method.images(z, labels))
    from rayssl.pipeline.report.galleries import save_contact_sheet

    save_contact_sheet(list(found.reshape(side, side, *found.shape[1:])), out / "grid.png")
    values = {
        "columns": axes[0].tolist(),
        "rows": axes[1].tolist(),
        "prior": "gaussian" if method.has_prior else "none",
    }
    write_json(out / "grid.json", values)
    return values


def lerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """z = (1 − w)·a + w·b."""
    return torch.lerp(a, b, w)


def slerp(a: Tensor, b: Tensor, w: float) -> Tensor:
    """Along the arc between two codes (1, D), lengths interpolated: under a Gaussian prior the straight line runs
    through lengths that it hardly ever draws (White, "Sampling generative networks", 2016, §2). Straight where the
    codes point the same or the opposite way.
    """
    norms = torch.stack([a.norm(), b.norm()])
    if norms.min() == 0:
        return lerp(a, b, w)
    angle = torch.acos(((a * b).sum() / norms.prod()).clamp(-1, 1))
    if angle < 1e-4 or angle > np.pi - 1e-4:
        return lerp(a, b, w)
    towards = ((1 - w) * angle).sin() * a / norms[0] + (w * angle).sin() * b / norms[1]
    found: Tensor = towards / angle.sin() * torch.lerp(norms[0], norms[1], w)
    return found


def normal_quantile(share: Tensor) -> Tensor:
    """Φ⁻¹ of shares in (0, 1)."""
    found: Tensor = torch.special.ndtri(share.double())
    return found.to(share.dtype)


def require_codes(trained: Trained) -> HasCodes:
    """The method; raises UserError for one without a code that can be decoded."""
    if not isinstance(trained.method, HasCodes):
        raise UserError(f"{trained.run} has no code between encoder and decoder: only autoencoder runs interpolate")
    return trained.method


def read_end(trained: Trained, name: str, label: str | None) -> Clean:
    """An image file, or the evaluation image of a number, with its label where the model needs one."""
    if Path(name).is_file():
        labels = class_of(trained, label) if trained.method.conditions or label else None
        data = trained.dataset
        shown = Shown.of(data.range, data.background)
        pixels = decode(Path(name), data.channels, load_size_of(data.image_size), shown)
        square = torch.from_numpy(to_square(pixels, trained.dataset.image_size)[None].copy())
        x = to_float(square, trained.device, trained.precision)
        return Clean(x, torch.ones(1, dtype=torch.int64, device=trained.device), labels)
    held_out = trained.held_out
    if not name.isdigit() or int(name) >= len(held_out):
        raise UserError(f"{name} is not an image file and no number of one of the {len(held_out)} evaluation images")
    found = trained.clean(held_out, np.array([int(name)]))
    return found if label is None else Clean(found.x, found.ids, class_of(trained, label))


def class_of(trained: Trained, label: str | None) -> Tensor:
    """(1,) the number of a class by its name; UserError where there is none of that name."""
    names = trained.dataset.class_names or ()
    if not trained.method.conditions:
        raise UserError(f"--label {label}: the model of {trained.run} is not given classes: leave it out")
    if label is None or label not in names:
        raise UserError(f"--label {label}: the model was given classes, so name one of {', '.join(names[:20])}")
    return torch.tensor([names.index(label)], device=trained.device)
