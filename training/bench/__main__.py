"""``python -m training.bench``."""

from training.bench.cli import main

if __name__ == "__main__":
    main()
