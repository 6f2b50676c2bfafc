"""The vectors that an open index has of its own images, by id.

Shapes: N images, d numbers in a vector.
"""

from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.base.vectors import normalise
from rayssl.pipeline.search.embeddings import files_of, load_embeddings
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
        rows = self.opened.items.rows(ids)
        if (rows < 0).any():
            raise UserError(f"no image of the id {ids[rows < 0][0]} is indexed")
        if self._kept_whole:
            return np.stack([self.opened.index.reconstruct(int(one)) for one in ids])
        return self._embeddings[rows]

    @cached_property
    def _kept_whole(self) -> bool:
        index = faiss.downcast_index(self.opened.index)
        if not isinstance(index, faiss.IndexIDMap2):
            return False
        return isinstance(faiss.downcast_index(index.index), faiss.IndexFlat)

    @cached_property
    def _embeddings(self) -> Floats:
        """(N, d) in the order of the items."""
        run, name = self.opened.run, self.opened.name
        folder = run / "embeddings" / name / (FOLDER if has_search(run) else "")
        return normalise(np.concatenate([load_embeddings(path).vectors for path in files_of(folder)]))
