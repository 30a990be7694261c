"""Look for files that `pixels` does not decode or refuse, guided by what of its Python and Pillow's they reach.

    python -m tests.fuzz.fuzz_pixels CORPUS -max_total_time=60

CORPUS is a folder for the files that reach something new; an empty one is filled with a good picture of every kind
first. Everything after it is libFuzzer's (``-help=1``): ``-max_total_time`` in seconds, ``-runs``, ``-jobs``. What it
finds it leaves in the working directory, or where ``-artifact_prefix=`` says, as ``crash-*``, ``timeout-*`` or
``oom-*``; give that file in CORPUS's place to see it again. Linux, Python 3.11 to 3.13 (the wheels of atheris).
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "shared"]):
    import PIL.AvifImagePlugin
    import PIL.BmpImagePlugin
    import PIL.GifImagePlugin
    import PIL.JpegImagePlugin
    import PIL.MpoImagePlugin
    import PIL.PngImagePlugin
    import PIL.TiffImagePlugin
    import PIL.WebPImagePlugin  # noqa: F401  # all of them for their instruments

    from shared.pixels import SIZE, Limits, RefusedImageError, pixels

from tests.fuzz.pictures import PNG_SIGNATURE, good, mended

# Small, so that time goes into files and not into pixels; the limit itself has tests of its own.
LIMITS = Limits(max_pixels=1_000_000)
DEFAULTS = ("-timeout=20", "-rss_limit_mb=1500", "-max_len=20000")


def one_input(data: bytes) -> None:
    """The claim, for one file."""
    try:
        picture = pixels(data, LIMITS)
    except RefusedImageError:
        return
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == "uint8"


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change the file as libFuzzer would; a PNG keeps its checksums right three times in four."""
    changed = bytes(atheris.Mutate(data, max_size))
    if seed % 4 and changed.startswith(PNG_SIGNATURE):
        changed = mended(changed)
    return changed[:max_size]


def main() -> None:
    """Fill the corpus and fuzz."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0].startswith("-"):
        sys.exit("usage: python -m tests.fuzz.fuzz_pixels CORPUS [libFuzzer's options]")
    corpus = Path(arguments[0])
    if not corpus.is_file():
        corpus.mkdir(parents=True, exist_ok=True)
        if not any(corpus.iterdir()):
            for kind, data in good().items():
                (corpus / kind.replace(" ", "-")).write_bytes(data)
    atheris.Setup([sys.argv[0], *DEFAULTS, *arguments], one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
