"""Files of traces: the log, the archive, and what is read from and written beside them."""
