"""Classify one picture, from bytes to an answer; runs in a lane."""

import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from serving.engine.wire import PLAIN, Answer, Flags
from serving.model import evidence
from serving.model.session import Model
from shared.pixels import Limits, Photo, Pixels, decode

UPRIGHT = 1  # EXIF's orientation of a picture that is not turned


def classify(
    model: Model,
    source: bytes | Pixels,
    limits: Limits,
    flags: Flags = PLAIN,
    opened: Callable[[int], object] = lambda _: None,
    keep: Callable[[Pixels], object] = lambda _: None,
) -> Answer:
    """Look at one picture, decoded first if it is a file, and again if need be.

    Args:
        model: the model.
        source: the picture file; or its pixels, uint8 [224, 224, 3].
        limits: what decoding it may cost.
        flags: ``EXPLAIN``, ``DRAW``, ``ALONE``, ``KEEP`` and ``KEEP_UNSURE``.
        opened: see :func:`shared.pixels.decode`.
        keep: called with what the network saw, if the flags ask for it.

    Raises:
        RefusedImageError: the file is not a picture that can be decoded within ``limits``.
        ModelFailedError: the model gave no answer.
    """
    started = time.perf_counter()
    photo = decode(source, limits, opened) if isinstance(source, bytes) else Photo(Image.fromarray(source), UPRIGHT)
    decoded = time.perf_counter()
    outputs, picture, again = model.look(photo, alone=Flags.ALONE in flags)
    inferred = time.perf_counter()
    cats, dogs = map(_plain, outputs.probabilities[0])
    familiarity = _plain(outputs.familiarity[0])
    verdict = model.contract.judge(outputs.probabilities[0].tolist(), float(outputs.familiarity[0]))
    kept = Flags.KEEP in flags or (Flags.KEEP_UNSURE in flags and verdict.verdict == "unsure")
    if kept:
        keep(picture)
    png = None
    if Flags.DRAW in flags:
        png = evidence.draw(picture, outputs.evidence[0], evidence.drawn_size(*photo.size))
    return Answer(
        label=verdict.label,
        verdict=verdict.verdict,
        unsure_because=verdict.unsure_because,
        cats=cats,
        dogs=dogs,
        familiarity=familiarity,
        again=again,
        brightness=int(picture.sum(dtype=np.uint32)) / (255 * picture.size),  # 27 µs, where mean() takes 70
        size=len(source) if isinstance(source, bytes) else source.nbytes,
        width=photo.full_size[0],
        height=photo.full_size[1],
        evidence=[[_plain(value) for value in row] for row in outputs.evidence[0]] if Flags.EXPLAIN in flags else None,
        png=png,
        decode=decoded - started,
        infer=inferred - decoded,
        draw=time.perf_counter() - inferred,
        cpu=0.0,
        kept=kept,
    )


def _plain(value: np.float32) -> float:
    """Return the shortest decimal that gives this float32: 0.9877, not 0.9876999855041504 as float() would."""
    return float(str(value))
