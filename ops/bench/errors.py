"""Errors that are shown to the user in one line."""


class BenchError(Exception):
    """Shown as one line; exit code 2, and no report."""
