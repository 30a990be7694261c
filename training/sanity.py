"""Pictures that show nothing: a model that answers to them is not shipped."""

from typing import Final

import msgspec
import numpy as np
from PIL import Image

from shared.contract import SecondLook, Unsure
from shared.metrics import Floats
from shared.pixels import Photo
from shared.second_look import Network, look
from training.stage import StageError

SIDE: Final = 300
MOST_UNFAMILIAR: Final = 0.05  # of the validation photos, for the sake of these pictures


def pictures() -> dict[str, Photo]:
    """Names and pictures: blank ones, noise and a gradient."""
    random = np.random.default_rng(20261129)
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    arrays = {
        "white": np.full((SIDE, SIDE, 3), 255, np.uint8),
        "black": np.zeros((SIDE, SIDE, 3), np.uint8),
        "grey": np.full((SIDE, SIDE, 3), 128, np.uint8),
        "noise": random.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
        "grey noise": np.repeat(random.integers(0, 256, (SIDE, SIDE, 1), np.uint8), 3, 2),
        "gradient": np.repeat(np.repeat(ramp[np.newaxis, :, np.newaxis], SIDE, 0), 3, 2),
    }
    return {name: Photo(Image.fromarray(array), 1) for name, array in arrays.items()}


def unsure(network: Network, when: SecondLook, found: Unsure, familiarity: Floats) -> Unsure:
    """Thresholds by which all these pictures are unsure: ``found``, or a higher one of familiarity if it takes that.

    Args:
        network: the file.
        when: its second look.
        found: the thresholds so far.
        familiarity: of the validation photos, float [n].

    Raises:
        StageError: that would call more than ``MOST_UNFAMILIAR`` of the validation photos unfamiliar.
    """
    for name, photo in pictures().items():
        outputs = look(photo, network, when).outputs
        value = float(outputs.familiarity[0])
        if value < found.unfamiliar or float(outputs.probabilities.max()) < found.close_call:
            continue
        found = msgspec.structs.replace(found, unfamiliar=float(np.nextafter(np.float32(value), np.float32(2))))
        share = float((familiarity < found.unfamiliar).mean())
        if share > MOST_UNFAMILIAR:
            answer = ("cats", "dogs")[int(outputs.probabilities[0].argmax())]
            raise StageError(
                f"a picture that shows nothing ({name}) is called {answer} {outputs.probabilities.max():.3f}, and "
                f"looks more familiar than {share:.0%} of the validation photos: the network has not learned what "
                "animals look like; train on more photos, or give photos of other things (export.others)"
            )
        print(f"unfamiliar: below {found.unfamiliar:.3f}, so that a picture that shows nothing ({name}) is unsure")
    return found
