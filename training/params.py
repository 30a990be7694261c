"""``params.yaml``, typed: a wrong name or value is an error before anything runs.

python -m training.params fetch.source="a.zip b.zip"      # set a value, keeping the file's comments
"""

import io
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from training.stage import StageError, write_whole

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the file; an unknown name in it is an error."""


class Fetch(Section, frozen=True):
    """Where the photographs come from."""

    source: Annotated[list[str], msgspec.Meta(min_length=1)]


class Audit(Section, frozen=True):
    """When two files are one photo; below 1, since equal thumbnails correlate to 1 only within float32's rounding."""

    near_duplicate: Annotated[float, msgspec.Meta(gt=0, le=0.999)]


class Split(Section, frozen=True):
    """Shares of the sides; the rest is the test set."""

    train: Annotated[float, msgspec.Meta(gt=0, lt=1)]
    val: Annotated[float, msgspec.Meta(gt=0, lt=1)]

    def __post_init__(self) -> None:
        """Leave something for the test set."""
        if self.train + self.val >= 1:
            raise ValueError(f"train {self.train} and val {self.val} leave nothing to test on")


class Augmentation(Section, frozen=True):
    """What training does to its pictures; see :mod:`training.augmentation`."""

    flip: Share
    rotation: Annotated[float, msgspec.Meta(ge=0, le=180)]
    crop_scale: tuple[Positive, Positive]
    crop_ratio: tuple[Positive, Positive]
    brightness: Share
    contrast: Share
    saturation: Share
    hue: Annotated[float, msgspec.Meta(ge=0, le=0.5)]
    rescale: tuple[Positive, Share]


class Variation(Section, frozen=True):
    """A further run from the same start: what differs from the first one's values."""

    epochs: AtLeastOne | None = None
    lr: Positive | None = None
    seed: Count | None = None
    crop_scale: tuple[Positive, Positive] | None = None


class Train(Section, frozen=True):
    """The network and how it learns."""

    model: str
    pretrained: bool
    seed: Count
    epochs: AtLeastOne
    batch_size: AtLeastOne
    lr: Positive
    head_lr: Positive
    weight_decay: Annotated[float, msgspec.Meta(ge=0)]
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    frozen_blocks: Count
    probe_pictures: Count
    weight_average: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    checkpoint_minutes: Positive
    soup: tuple[Variation, ...]
    augmentation: Augmentation


class Export(Section, frozen=True):
    """The file and what is fitted on the validation set."""

    opset: Annotated[int, msgspec.Meta(ge=18)]
    parity_pictures: AtLeastOne
    familiarity_pictures: AtLeastOne
    familiarity_dimensions: AtLeastOne
    answered_error: Share
    unfamiliar_share: Share


class Evaluate(Section, frozen=True):
    """The report."""

    worst: Count


class Params(Section, frozen=True):
    """The whole file."""

    fetch: Fetch
    audit: Audit
    split: Split
    train: Train
    export: Export
    evaluate: Evaluate


def load(path: Path) -> Params:
    """Read ``params.yaml``.

    Raises:
        StageError: the file is missing, is no YAML, or has an unknown name or an impossible value.
    """
    try:
        return msgspec.convert(YAML(typ="safe").load(path.read_text()), Params)
    except OSError as error:
        raise StageError(f"{path}: {error.strerror}; run this where params.yaml lies, or pass --params") from error
    except (YAMLError, msgspec.ValidationError, ValueError) as error:
        raise StageError(f"{path}: {error}") from error


def assign(path: Path, name: str, value: Any) -> None:
    """Set the dotted ``name`` in the file at ``path``, keeping its comments and order."""
    yaml = YAML()
    yaml.width = 120
    document = yaml.load(path.read_text())
    *sections, last = name.split(".")
    section = document
    for part in sections:
        section = section[part]
    section[last] = value
    text = io.StringIO()
    yaml.dump(document, text)
    write_whole(path, text.getvalue())
    load(path)


if __name__ == "__main__":
    name, _, text = sys.argv[1].partition("=")
    assign(Path("params.yaml"), name, shlex.split(text) if name == "fetch.source" else YAML(typ="safe").load(text))
