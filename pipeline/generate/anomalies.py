"""Which evaluation images are unlike the training images? By reconstruction error, likelihood, distance to neighbours.

Shapes: N images, D features. A larger score is more unusual, whatever the score.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.files import replacing, write_json
from rayssl.pipeline.data import Images
from rayssl.pipeline.features.extract import embed_images
from rayssl.pipeline.generate.decoder import Progress, Trained
from rayssl.pipeline.generate.reconstruct import squared_error
from rayssl.pipeline.methods.base import BoundsLikelihood, HasLikelihood, Key, Method, Reconstructs
from rayssl.pipeline.models.encoder import Encoder

SHOWN = 12  # images in a row of the gallery
ROWS = 4
DRAWS = 8  # of z, for the ELBO

Scores = dict[str, NDArray[np.float64]]


def rank_anomalies(
    encoder: Encoder,
    trained: Trained | None,
    train: Images,
    held_out: Images,
    normal: NDArray[np.int64] | None,
    *,
    k: int,
    device: torch.device,
    precision: str,
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Write anomalies.parquet (most unusual first), anomalies.png and anomalies.json into `out`.

    `normal` (N,) says which evaluation images are normal: 1, or 0, or −1 if that is unknown; None: no AUROC.
    `trained` None: the run kept no decoder, and the distance to neighbours is the only score.
    """
    scores: Scores = {"knn": knn_distance(encoder, train, held_out, k, device, precision)}
    if trained is not None:
        scores = {**model_scores(trained, held_out, progress), **scores}
    order = np.argsort(-next(iter(scores.values())), kind="stable")
    save_list(held_out, scores, normal, order, out / "anomalies.parquet")
    save_gallery(held_out, order, encoder.image_size, out / "anomalies.png")
    figures: dict[str, Any] = {"images": len(held_out), "ranked_by": next(iter(scores)), "k": k}
    if normal is not None and {0, 1} <= set(normal.tolist()):
        known = normal >= 0
        figures |= {
            "normal": int((normal == 1).sum()),
            "anomalous": int((normal == 0).sum()),
            "auroc": {name: auroc(values[known], normal[known] == 0) for name, values in scores.items()},
        }
    write_json(out / "anomalies.json", figures)
    return figures


def model_scores(trained: Trained, images: Images, progress: Progress) -> Scores:
    """Of an autoencoder the error, of one with a likelihood the negative ELBO too; of a PixelCNN −log p."""
    parts: dict[str, list[Tensor]] = {}
    done = 0
    for batch in trained.batches(images):
        # A conditional model is not told the label: that would tell it what is to be found out.
        unknown = torch.full_like(batch.ids, -1)
        with torch.inference_mode(), trained.computing():
            for name, value in scores_of(trained.method, batch.x, batch.ids, unknown, trained.seed).items():
                parts.setdefault(name, []).append(value.double().cpu())
        done += len(batch.x)
        progress(done, len(images))
    return {name: torch.cat(values).numpy() for name, values in parts.items()}


def scores_of(method: Method[Any], x: Tensor, ids: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """(B,) each. Draws are keyed by the image's id."""
    key: Key = [seed, 0, ids, 0]
    if isinstance(method, HasLikelihood):
        return {"nats": method.nats(x, key)}
    if not isinstance(method, Reconstructs):
        raise UserError(f"{type(method).__name__} gives no image back and has no likelihood: nothing tells an anomaly")
    clean = method.target(x, key)
    found = {}
    if isinstance(method, BoundsLikelihood) and method.has_likelihood:
        found["negative-elbo"] = -method.log_likelihood(clean, labels, DRAWS, key)[0]
    return {**found, "error": squared_error(method.reconstruct(clean, labels), clean)}


def knn_distance(
    encoder: Encoder, train: Images, images: Images, k: int, device: torch.device, precision: str
) -> NDArray[np.float64]:
    """(N,) 1 − mean cosine similarity to the k nearest training images, of features centred on the training mean."""
    import faiss

    known, asked = (embed_images(encoder, part, device=device, precision=precision) for part in (train, images))
    centre = known.mean(axis=0)
    known, asked = unit(known - centre), unit(asked - centre)
    index = faiss.IndexFlatIP(known.shape[1])
    index.add(known)
    similar, _ = index.search(asked, min(k, len(known)))
    found: NDArray[np.float64] = 1 - similar.astype(np.float64).mean(axis=1)
    return found


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    found: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(found)


def auroc(scores: NDArray[np.float64], anomalous: NDArray[np.bool_]) -> float:
    """Chance that an anomalous image has a larger score than a normal one, ties half: area under the ROC curve."""
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    positives = int(anomalous.sum())
    negatives = len(scores) - positives
    return float((ranks[anomalous].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def normal_images(images: Images, names: tuple[str, ...] | None, normal: list[str]) -> NDArray[np.int64] | None:
    """(N,) 1 for images of the classes called normal, 0 for others, −1 without a label; None: nothing is called so.

    Raises UserError for a class that there is not, or images without labels.
    """
    if not normal:
        return None
    if names is None or images.labels is None:
        raise UserError(f"--normal {','.join(normal)}: the images have no labels")
    if unknown := [name for name in normal if name not in names]:
        raise UserError(f"--normal {unknown[0]} is not a class: known are {', '.join(names[:20])}")
    found = np.isin(images.labels, [names.index(name) for name in normal]).astype(np.int64)
    return np.where(images.labels < 0, -1, found)


def save_list(
    images: Images, scores: Scores, normal: NDArray[np.int64] | None, order: NDArray[np.int64], path: Path
) -> None:
    """One row an image, most unusual first; "normal" is null where it is unknown."""
    columns: dict[str, Any] = {
        "rank": np.arange(1, len(order) + 1),
        "path": [images.paths[i] for i in order.tolist()],
        "id": images.ids[order],
        **{name: values[order] for name, values in scores.items()},
    }
    if normal is not None:
        columns["normal"] = pa.array((normal == 1)[order], mask=(normal < 0)[order])
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def save_gallery(images: Images, order: NDArray[np.int64], size: int, path: Path) -> None:
    """The most unusual images, row by row, and in the last row the most usual ones."""
    from rayssl.pipeline.report.galleries import save_contact_sheet

    width = min(SHOWN, len(order))
    rows = [order[i * width : (i + 1) * width] for i in range(min(ROWS, len(order) // width))]
    save_contact_sheet([images.square(row, size) for row in (*rows, order[-width:])], path)
