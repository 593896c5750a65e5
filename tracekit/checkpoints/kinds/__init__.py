"""Formats of checkpoints, one file a format, each with its `KIND`."""
