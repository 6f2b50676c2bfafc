"""Whether colours or shapes tell the classes of some images apart, asked of the two classical descriptors.

What tells images apart must not be what views hide: a network that is trained to ignore colours forgets them.
"""

import numpy as np
from numpy.typing import NDArray

from rayssl.pipeline.data.dataset import Images
from rayssl.pipeline.models.descriptors import DESCRIPTORS, describe
from rayssl.pipeline.training.guard import draw_sample, knn_hits, paired_error

COLORS, SHAPES = "color-histogram", "hog"
LOOKED_AT = 4096  # images at most, at most a quarter of them validation images
SURE = 2.0  # paired standard errors


def colors_tell(train: Images, val: Images, classes: int, seed: int) -> bool | None:
    """Whether validation images are told by the colours of their neighbours rather than by their shapes.

    True where the colour histogram's kNN is better than HOG's, by more than two paired standard errors. None where
    there are no colours, or too few labels to tell.
    """
    if train.channels != 3:
        return None
    sample = draw_sample(train, val, classes, seed, LOOKED_AT)
    if sample is None or sample.measure != "knn":
        return None
    colors, shapes = (
        knn_hits(_described(name, sample.queries), _described(name, sample.references), sample)
        for name in (COLORS, SHAPES)
    )
    return bool((colors - shapes).mean() > SURE * paired_error(colors, shapes))


def _described(name: str, images: Images) -> NDArray[np.float32]:
    return describe(name, images.square(np.arange(len(images)), DESCRIPTORS[name].size))
