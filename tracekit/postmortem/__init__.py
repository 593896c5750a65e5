"""Postmortem: which seeds fail, grouped by cause."""
