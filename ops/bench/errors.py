"""What can go wrong that a person can mend."""


class BenchError(Exception):
    """Shown as one line; exit code 2, and no report."""
