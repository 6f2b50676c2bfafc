"""Self-supervised pre-training of image encoders, from a folder of images to a searchable index."""

__version__ = "0.1.0"
