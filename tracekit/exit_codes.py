"""What tracekit's commands exit with. `record` exits with the recorded program's own code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """As of diff(1)."""

    AGREE = 0  # parity, within bounds, nothing found
    DIFFER = 1  # a divergence, a culprit, a seed that fails
    TROUBLE = 2  # no verdict: a file cannot be read, or what there is cannot be judged
    INTERRUPTED = 130  # by the user; as a shell says it
