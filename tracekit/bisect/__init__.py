"""The first build of a program that computes something else than the good one."""
