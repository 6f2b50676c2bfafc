"""Self-supervised pre-training of image encoders, from a folder of images to a searchable index."""

if __name__ != "rayssl.pipeline":
    raise ImportError("pipeline is rayssl.pipeline now: from rayssl.pipeline import …, python -m rayssl.pipeline.…")

__version__ = "0.1.0"
