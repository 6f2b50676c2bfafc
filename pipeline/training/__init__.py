"""The training loop and what belongs to it: batches, optimisers, checkpoints, the recorded step."""
