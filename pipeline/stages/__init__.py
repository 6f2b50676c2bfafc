"""The story of a run, one function a stage: pretrain → probe → finetune → embed → search → index → evaluate → report.

Each reads the run folder, does one thing, writes the run folder and marks itself done there. With the same inputs
again it does nothing. Shapes: N images, D features.
"""
