"""Programs that are run and record themselves."""
