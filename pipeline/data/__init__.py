"""Images: from files, shards, tables, URLs or a name to random access."""

from pipeline.base.cache_folder import cache_dir
from pipeline.data.dataset import Dataset, Images, of_classes, sample_id
from pipeline.data.decode import decode, to_square
from pipeline.data.named import is_named
from pipeline.data.open_set import open_dataset
from pipeline.data.reading import AUTO, WORDS, Note, Reading

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
