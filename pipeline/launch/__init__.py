"""From configs to finished run folders: prepare, run the worker stages on Ray (or torchrun), then the rest here."""
