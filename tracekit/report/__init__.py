"""What a person reads."""

from tracekit.report.text import verdict_text

__all__ = ["verdict_text"]
