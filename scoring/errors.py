"""What ends a command, rather than one picture."""


class ScoreError(Exception):
    """The source or the destination cannot be used; the message says which and why."""
