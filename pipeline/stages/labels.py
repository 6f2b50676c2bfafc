"""Whether a run's images have the labels that a stage needs."""

from rayssl.pipeline.base.errors import UserError
from rayssl.pipeline.data import Dataset

# Probe and fine-tuning


def labelled_images(dataset: Dataset) -> list[int]:
    """How many images of train, val and test have a label."""
    splits = (dataset.train, dataset.val, dataset.test)
    return [len(images.labelled()[0]) if images is not None else 0 for images in splits]


def has_labels(dataset: Dataset) -> bool:
    """Whether every split has labelled images, of all classes."""
    return bool(dataset.class_names) and all(labelled_images(dataset)) and not dataset.some_classes


def require_labels(dataset: Dataset, verb: str) -> None:
    """Raises UserError where a split has no labelled image."""
    if has_labels(dataset):
        return
    if dataset.some_classes:
        raise UserError(f"`{verb}` needs training images of all classes: the run was started with --data.classes")
    train, val, test = labelled_images(dataset)
    few = f"too few (of {train} training, {val} validation and {test} test images)"
    raise UserError(
        f"`{verb}` needs labels and {dataset.path} has {few if dataset.class_names else 'none'}: put the images of "
        "each class in a folder of its own, or name a CSV with --data.labels when the run is started"
    )
