"""Search for augmentations: what can be chosen, what a candidate is worth, and what was tried."""
