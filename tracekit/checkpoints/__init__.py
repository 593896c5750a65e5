"""Checkpoints on disk: read without running anything, and compared tensor by tensor."""
