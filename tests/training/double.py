"""`python -m training.train` in float64.

In float32 Adam amplifies what rounding leaves of gradients near 0: one process with one thread ends as far from one
with two threads as two processes do.
"""

from typing import Any

from training import machine, models, train


def main() -> None:
    """Train with every network in float64."""
    build = models.build

    def in_double(*args: Any, **kwargs: Any) -> models.Classifier:
        return build(*args, **kwargs).double()

    models.build = in_double
    machine._cpu_has_bf16 = lambda: False
    train.main()


if __name__ == "__main__":
    main()
