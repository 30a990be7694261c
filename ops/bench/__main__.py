"""``python -m ops.bench``."""

from ops.bench.cli import main

if __name__ == "__main__":
    main()
