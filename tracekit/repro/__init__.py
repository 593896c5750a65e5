"""A repro: the smallest input that still shows a fault, with tests that fail until it is mended."""

from tracekit.repro.failing_run import Case, Command, Repro
from tracekit.repro.write import write_repro

__all__ = ["Case", "Command", "Repro", "write_repro"]
