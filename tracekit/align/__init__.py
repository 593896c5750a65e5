"""Which sequence, site and row of one trace is which of the other."""
