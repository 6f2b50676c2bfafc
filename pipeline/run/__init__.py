"""The run folder: its layout, what it is started with, what `auto` becomes, and what a run costs."""
