"""``params.yaml``, typed: an unknown name or invalid value is an error before anything runs."""

import io
from pathlib import Path
from typing import Annotated, Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shared.contract import CLASSES, Label
from shared.files import write_whole
from training.stage import PRODUCTION, StageError

NotNegative = Annotated[float, msgspec.Meta(ge=0)]
JpegQuality = Annotated[int, msgspec.Meta(ge=1, le=100)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Choices = Annotated[list[bool | int | float | str], msgspec.Meta(min_length=1)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the file; an unknown name in it is an error."""


class Collection(Section, frozen=True, omit_defaults=True):
    """Photographs from one source, the name that they are filed under, and where they come from on which terms."""

    source: str
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9 ._-]{0,60}[A-Za-z0-9])?\Z")] = ""
    licence: str = ""
    origin: str = ""


class Gather(Section, frozen=True):
    """Samples that a service kept, and the ledger with their labels; null: no samples."""

    samples: str | None
    labels: str | None
    digest: str = ""  # of what they hold, so that DVC sees new labels under an old name; `catsdogs gather` sets it


class Fetch(Section, frozen=True):
    """Where the photographs come from, what says which animal they show, and whether they keep the side they are on."""

    source: Annotated[list[str | Collection], msgspec.Meta(min_length=1)]
    classes: dict[Label, list[str | int]]
    keep_sides: bool
    digest: str = ""  # of what the source holds, so that DVC sees new photos under an old name; `training.own` sets it

    def __post_init__(self) -> None:
        """Each class has names, none has another's, and no two collections have the same."""
        names = [str(name).lower() for label in CLASSES for name in self.classes.get(label, [""])]
        if "" in names or len(set(names)) < len(names):
            raise ValueError(f"classes {self.classes}: cats and dogs need names, all different")
        stated = [entry.name.lower() for entry in self.source if isinstance(entry, Collection) and entry.name]
        if len(set(stated)) < len(stated):
            raise ValueError(f"source: two collections have the same name: {', '.join(stated)}")
        if PRODUCTION in stated:
            raise ValueError(f"source: {PRODUCTION} is the name of the samples that `catsdogs gather` brings")

    def labels(self) -> dict[str, Label]:
        """Label by name, in lower case."""
        return {str(name).lower(): label for label, names in self.classes.items() for name in names}


def classes_of(text: str) -> dict[str, list[str]]:
    """``fetch.classes`` from a form such as ``cats=cat,kitten,0 dogs=dog,puppy,1``."""
    return {label: names.split(",") for label, _, names in (part.partition("=") for part in text.split())}


def with_classes(section: Fetch, text: str) -> Fetch:
    """The section with the classes of a text that :func:`classes_of` reads.

    Raises:
        StageError: the text is of another form.
    """
    try:
        return msgspec.convert(msgspec.to_builtins(section) | {"classes": classes_of(text)}, Fetch)
    except msgspec.ValidationError as error:
        raise StageError(f'{text!r}: {error}; expected a form such as "cats=cat,kitten,0 dogs=dog,puppy,1"') from error


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
            raise ValueError(f"train {self.train} and val {self.val} leave no photos for the test set")


class Suspects(Section, frozen=True):
    """How labels are checked, and the share of them that may look wrong before the data set is refused."""

    folds: Annotated[int, msgspec.Meta(ge=2)]
    seed: Count
    model: str
    pretrained: bool
    swapped: Share


class Augmentation(Section, frozen=True):
    """What training does to its pictures; see :mod:`training.augmentation`."""

    flip: Share
    turn: Share
    frame: Share
    rotation: Annotated[float, msgspec.Meta(ge=0, le=180)]
    crop_scale: tuple[Positive, Positive]
    crop_ratio: tuple[Positive, Positive]
    brightness: Share
    contrast: Share
    saturation: Share
    hue: Annotated[float, msgspec.Meta(ge=0, le=0.5)]
    grey: Share
    dark: Share
    rescaled: Share
    rescale: tuple[Positive, Share]
    sharpness: tuple[NotNegative, NotNegative]
    noise: Share
    covered: Share
    jpeg: tuple[JpegQuality, JpegQuality]


class Train(Section, frozen=True):
    """A network and how it learns; it sees squares of ``side`` pixels."""

    model: str
    side: Annotated[int, msgspec.Meta(ge=32)]
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
    production_share: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    checkpoint_minutes: Positive
    audited: bool
    augmentation: Augmentation

    def varied(self, changes: dict[str, Any]) -> "Train":
        """The recipe with other values, by their dotted names.

        Raises:
            ValueError: they name an unknown parameter, or give one an invalid value.
        """
        section = msgspec.to_builtins(self)
        for name, value in changes.items():
            *parents, last = name.split(".")
            part = section
            for parent in parents:
                part = part.get(parent)
                if not isinstance(part, dict):
                    raise ValueError(f"no parameter {name!r}")
            if last not in part:
                raise ValueError(f"no parameter {name!r}")
            part[last] = value
        try:
            return msgspec.convert(section, Train)
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error


class LookAgain(Section, frozen=True):
    """Shares of the validation photos that are looked at again: the least sure ones, and the least familiar."""

    unsure: Share
    unfamiliar: Share


class Corrupted(Section, frozen=True):
    """How many validation photos are corrupted, and what to make of it."""

    photos: AtLeastOne
    answered_error: Share
    unsure: Share


class Export(Section, frozen=True):
    """The file and what is fitted on the validation photos."""

    opset: Annotated[int, msgspec.Meta(ge=18)]
    parity_pictures: AtLeastOne
    familiarity_pictures: AtLeastOne
    familiarity_dimensions: AtLeastOne
    others: tuple[str, ...]
    crops: Annotated[tuple[Annotated[float, msgspec.Meta(gt=0, le=1)], ...], msgspec.Meta(min_length=1, max_length=8)]
    look_again: LookAgain
    answered_error: Share
    corrupted: Corrupted
    unfamiliar_share: Share


class Quantize(Section, frozen=True):
    """The int8 file."""

    pictures: AtLeastOne
    percentile: Annotated[float, msgspec.Meta(gt=50, le=100)]
    in_float: tuple[str, ...]


class Evaluate(Section, frozen=True):
    """The report."""

    worst: Count
    timed: AtLeastOne
    covered: AtLeastOne
    corrupted: AtLeastOne


class Range(Section, frozen=True):
    """Values to search, whole numbers if both ends are; evenly on a logarithmic scale if ``log``."""

    low: int | float
    high: int | float
    log: bool = False

    def __post_init__(self) -> None:
        """Have values between the ends."""
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"low {self.low} and high {self.high}: no range{' on a logarithmic scale' * self.log}")

    def __contains__(self, value: float) -> bool:
        """Whether a value lies within."""
        return self.low <= value <= self.high


class Params(Section, frozen=True):
    """The whole file."""

    gather: Gather
    fetch: Fetch
    audit: Audit
    split: Split
    suspects: Suspects
    train: Train
    closer: dict[str, Any] | None
    export: Export
    quantize: Quantize
    evaluate: Evaluate
    tune: dict[str, Range | Choices] = {}

    def __post_init__(self) -> None:
        """Check the second network's recipe before the first one is trained, and the ends of ranges."""
        self.closer_recipe()
        for name, values in self.tune.items():
            for value in values if isinstance(values, list) else (values.low, values.high):
                _varied("tune", self.train, {name: value})

    def closer_recipe(self) -> Train | None:
        """The section ``train`` as the network of the second look has it; None if the first network looks again.

        Raises:
            ValueError: ``closer`` names an unknown parameter, or gives one an invalid value.
        """
        return _varied("closer", self.train, self.closer) if self.closer else None


def _varied(section: str, recipe: Train, changes: dict[str, Any]) -> Train:
    try:
        return recipe.varied(changes)
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error


def load(path: Path) -> Params:
    """Read ``params.yaml``.

    Raises:
        StageError: the file is missing, is not YAML, or has an unknown name or an invalid value.
    """
    try:
        return msgspec.convert(YAML(typ="safe").load(path.read_text()), Params)
    except OSError as error:
        raise StageError(
            f"{path}: {error.strerror}; run this in the folder that has params.yaml, or pass --params"
        ) from error
    except (YAMLError, msgspec.ValidationError, ValueError) as error:
        raise StageError(f"{path}: {error}") from error


def assign_gather(path: Path, section: Gather, digest: str) -> None:
    """Set where samples and labels are in the file at ``path``, and the digest of what they hold."""
    for name, value in (("samples", section.samples), ("labels", section.labels), ("digest", digest)):
        assign(path, f"gather.{name}", value)


def assign(path: Path, name: str, value: Any) -> None:
    """Set the dotted ``name`` in the file at ``path``, keeping its comments and order.

    Raises:
        StageError: there is no such name, or it cannot have this value.
    """
    yaml = YAML()
    yaml.width = 120
    document = yaml.load(path.read_text())
    *sections, last = name.split(".")
    section = document
    for part in sections:
        section = section.get(part)
        if not isinstance(section, dict):
            raise StageError(f"{path}: no parameter {name!r}")
    if last in section:
        section[last] = value
    else:  # not at the end, which is behind the blank line that ends the section
        section.insert(1, last, value)
    text = io.StringIO()
    yaml.dump(document, text)
    write_whole(path, text.getvalue())
    load(path)
