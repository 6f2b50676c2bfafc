"""Images: from files, shards, tables, URLs or a name to random access."""

from rayssl.pipeline.base.cache_folder import cache_dir
from rayssl.pipeline.data.dataset import Dataset, Images, of_classes, sample_id
from rayssl.pipeline.data.decode import decode, to_square
from rayssl.pipeline.data.named import is_named
from rayssl.pipeline.data.open_set import open_dataset
from rayssl.pipeline.data.reading import AUTO, WORDS, Note, Reading

__all__ = [
    "AUTO",
    "WORDS",
    "Dataset",
    "Images",
    "Note",
    "Reading",
    "cache_dir",
    "decode",
    "is_named",
    "of_classes",
    "open_dataset",
    "sample_id",
    "to_square",
]
