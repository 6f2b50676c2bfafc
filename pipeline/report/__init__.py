"""From run folders to a self-contained report.html, a table on the terminal and comparison.json."""

from rayssl.pipeline.report.page import write_report
from rayssl.pipeline.report.table import print_comparison, write_comparison

__all__ = ["print_comparison", "write_comparison", "write_report"]
