"""Measurements: each a module to run, which prints a table and exits non-zero when it is over its limit."""
