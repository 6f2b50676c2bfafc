"""From images to numbers, by an encoder or a descriptor that is not trained meanwhile."""

LAST = "last"  # what a network gives at its end: the features themselves
