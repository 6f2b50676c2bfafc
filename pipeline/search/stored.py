"""The vectors that an open index has of its own images, by id.

Shapes: N images, d numbers in a vector.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.search.build import living_added
from rayssl.pipeline.search.embeddings import files_of, load_embeddings
from rayssl.pipeline.search.generations import following, has_generations, read_generation
from rayssl.pipeline.search.items import floats, ints
from rayssl.pipeline.search.query import OpenIndex
from rayssl.pipeline.search.store import FOLDER, has_search

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Stored:
    """Read from the index where it keeps vectors as they are; else from the embeddings, which are then in memory."""

    opened: OpenIndex

    def __call__(self, ids: Ints) -> Floats:
        """(N, d), as a query takes them; raises UserError for an id that the index does not know."""
        unknown = self.opened.items.rows(ids) < 0
        if unknown.any():
            raise UserError(f"no image of the id {ids[unknown][0]} is indexed")
        if self.opened.index.keeps_vectors:
            return np.stack([self.opened.index.vector(int(one)) for one in ids])
        known, vectors = self._embeddings
        places = np.searchsorted(known, ids).clip(max=len(known) - 1)
        if (known[places] != ids).any():
            raise UserError(
                f"{self.opened.run}/index/{self.opened.name} has changed since it was opened: open it again"
            )
        found: Floats = vectors[places]
        return found

    @cached_property
    def _embeddings(self) -> tuple[Ints, Floats]:
        """Ids (N,), ascending, and vectors (N, d): of the run's own images and of those that were added."""
        run, name = self.opened.run, self.opened.name
        found = [load_embeddings(path) for path in files_of(run / "embeddings" / name / self._part)]
        ids, vectors = [one.ids for one in found], [one.vectors for one in found]
        folder = run / "index" / name
        if has_generations(folder):
            added = living_added(following(folder, lambda current: read_generation(folder, current)))
            ids.append(ints(added["id"]))
            vectors.append(floats(added["vector"]))
        known = np.concatenate(ids)
        order = np.argsort(known)
        return known[order], normalise(np.concatenate(vectors))[order]

    @property
    def _part(self) -> str:
        return FOLDER if has_search(self.opened.run) else ""
