"""From images to numbers, by an encoder or a descriptor that is not trained meanwhile."""
