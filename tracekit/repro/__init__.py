"""A repro: the smallest input that still shows a fault, with tests that fail until it is mended."""
