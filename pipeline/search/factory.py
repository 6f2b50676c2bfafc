"""Which index a FAISS factory string stands for, and whether it can be built."""

import math
import re

import faiss

from rayssl.pipeline.base.errors import UserError

EXACT = 100_000  # vectors up to which all are compared
TRANSFORM = re.compile(r"(PCA|OPQ|RR|ITQ|Pad)[A-Z]*\d")  # parts of a factory string that may change a vector's length


def auto_factory(n: int, dim: int = 0, memory: int | None = None) -> str:
    """The FAISS factory string for n vectors of `dim` numbers: exact to 100,000, then IVF with 4√n lists.

    Exact search takes milliseconds to 100,000 (FAISS wiki, "Guidelines to choose an index"). The lists hold numbers of
    16 bits; of 8 bits, or codes of a product quantiser, where no more than `memory` bytes may be taken.

    Raises UserError where that is not enough for any of these.
    """
    if n <= EXACT and (memory is None or n * (4 * dim + 8) <= memory):
        return "Flat"
    lists = min(2 ** round(math.log2(4 * math.sqrt(n))), max(1, n // 39))  # FAISS wants 39 vectors a list to train
    codes = {
        "SQfp16": 2 * dim,
        "SQ8": dim,
        **{f"PQ{parts}": parts for parts in range(dim // 2, 0, -1) if dim % parts == 0},
    }
    for code, size in codes.items():
        needed = n * (size + 8) + 4 * lists * dim
        if memory is None or needed <= memory:
            return f"IVF{lists},{code}"
    raise UserError(f"--index.memory: {n:,} vectors of {dim} numbers take {needed:,} bytes at least, not {memory:,}")


def memory_of(text: str | None) -> int | None:
    """Bytes of a text such as 2GB or 300 MB; raises UserError for any other."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)i?B?\s*", text)
    if not found or not float(found[1]):
        raise UserError(f"--index.memory is '{text}': a size is needed, such as 2GB or 300MB")
    return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " "))


def cannot_build(factory: str, vectors: str, dim: int, error: RuntimeError) -> UserError:
    """What is raised where FAISS refuses a factory string for such vectors."""
    return UserError(
        f"--index.factory is '{factory}': FAISS cannot build it over {vectors} of {dim} dimensions "
        f"({reason_of(error)}); Flat always works"
    )


def built_as(factory: str) -> str:
    """The factory string that FAISS is given: scores are cosines, and no time goes into what no search uses."""
    return _without_polysemous_codes(_with_cosines(factory))


def _without_polysemous_codes(factory: str) -> str:
    """With "np" behind every PQ: training its codes to be compared as bits too takes seven times as long."""
    return re.sub(r"(?<![A-Za-z_])(PQ\d+(?:x\d+)?)(?=,|$|\+|\))", r"\1np", factory)


def _with_cosines(factory: str) -> str:
    """The factory string with L2norm behind its last transform, without which scores would be no cosines."""
    parts = factory.split(",")
    transforms = [i for i, part in enumerate(parts) if TRANSFORM.match(part.strip())]
    if not transforms or parts[transforms[-1] + 1 :][:1] == ["L2norm"]:
        return factory
    return ",".join([*parts[: transforms[-1] + 1], "L2norm", *parts[transforms[-1] + 1 :]])


def check_factory(factory: str, dim: int, n: int) -> None:
    """Raises UserError for a factory string that cannot index `n` vectors of `dim` numbers, as far as that is known."""
    try:
        index = faiss.index_factory(dim, built_as(factory), faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise cannot_build(factory, "vectors", dim, error) from None
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None and lists.nlist > n:
        raise UserError(f"--index.factory is '{factory}': {n} images cannot fill {lists.nlist} lists; Flat always can")


def reason_of(error: RuntimeError) -> str:
    """A FAISS error in one line, without its place in the C++ source."""
    return re.sub(r"^Error in .*?\.(cpp|h):\d+: (Error: )?", "", " ".join(str(error).split()))
