"""Out-of-distribution photos, of neither cats nor dogs: a file's answers by group, the most pet-like first."""

import hashlib
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from shared.contract import Contract
from shared.intervals import Interval, wilson
from shared.pixels import Photo, RefusedImageError, decode
from shared.second_look import Outputs
from training.measure import auroc, reasons
from training.photographs import Photos
from training.split import side
from training.stage import StageError, progress

# A file may be named by its ImageNet class, whose WordNet number says what it shows: a range of them by group.
GROUPS: Final = {
    "wolves, foxes and other wild dogs": range(2_114_000, 2_121_000),
    "big cats": range(2_125_000, 2_131_000),
    "other animals": range(1_300_000, 2_666_000),
    "things": range(2_666_000, 20_000_000),
}
OTHER: Final = "anything else"
LEARNED: Final = 0.8  # share of the photos that familiarity is fitted on; the rest is measured


@dataclass(frozen=True)
class OtherPhoto:
    """A file that shows neither cats nor dogs."""

    name: str
    data: bytes

    @property
    def learned(self) -> bool:
        """Whether familiarity is fitted on it."""
        return side(hashlib.sha256(self.data).hexdigest(), LEARNED, 0) == "train"

    def photo(self) -> Photo:
        """Decode it."""
        return decode(self.data)


class Group(msgspec.Struct, frozen=True):
    """How many photos of a group are not answered, and for which reason."""

    photos: int
    unsure: Interval
    unfamiliar: int
    close_call: int


class OodDetection(msgspec.Struct, frozen=True):
    """How well familiarity separates pets from anything else; ``auroc`` is the area under its ROC curve."""

    auroc: float
    strangers_unsure: Interval
    pets_unsure: Interval
    pets_unfamiliar: Interval
    groups: dict[str, Group]


def read(sources: Iterable[str]) -> list[OtherPhoto]:
    """Read the photos in zip files and folders, by name; what is not there is said and left out.

    Raises:
        StageError: a source cannot be read, or no photo in it.
    """
    photos: dict[str, OtherPhoto] = {}
    for path in map(Path, sources):
        if not path.exists():
            print(f"{path}: not found; its photos of other things are left out (export.others)")
            continue
        try:
            files = _files(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise StageError(f"{path}: {error}") from error
        readable = {
            hashlib.sha256(data).hexdigest(): OtherPhoto(name, data)
            for name, data in progress(files.items(), f"reading {path.name}")
            if _is_photo(data)  # there may be a list of names next to the photos
        }
        if not readable:
            raise StageError(f"{path}: no photo in it can be read")
        photos |= readable
    return [photos[digest] for digest in sorted(photos)]


def to_learn_from(photos: list[OtherPhoto]) -> list[OtherPhoto]:
    """The photos that familiarity is fitted on, by their content."""
    return [photo for photo in photos if photo.learned]


def to_measure(photos: list[OtherPhoto]) -> dict[str, Photos]:
    """The photos that nothing was fitted on, by group."""
    groups: dict[str, list[OtherPhoto]] = {name: [] for name in (*GROUPS, OTHER)}
    for photo in photos:
        if not photo.learned:
            groups[group(photo.name)].append(photo)
    return {name: _Group(some) for name, some in groups.items() if some}


class _Group:
    def __init__(self, photos: list[OtherPhoto]) -> None:
        self._photos = photos

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> Photo:
        return self._photos[index].photo()


def _is_photo(data: bytes) -> bool:
    try:
        decode(data)
    except RefusedImageError:
        return False
    return True


def group(name: str) -> str:
    """Group of the photo in a file of this name."""
    found = re.match(r"n(\d{8})", Path(name).name)
    number = int(found[1]) if found else 0
    return next((title for title, numbers in GROUPS.items() if number in numbers), OTHER)


def ood_detection(pets: Outputs, others: dict[str, Outputs], document: Contract) -> OodDetection:
    """Compare the answers to the pets of the test side with those to out-of-distribution photos."""
    because = {name: reasons(outputs, document) for name, outputs in others.items()}
    everything = np.concatenate(list(because.values()))
    of_pets = reasons(pets, document)
    familiarity: npt.NDArray[np.float32] = np.concatenate([outputs.familiarity for outputs in others.values()])
    return OodDetection(
        auroc=auroc(pets.familiarity, familiarity),
        strangers_unsure=wilson(int((everything != "").sum()), len(everything)),
        pets_unsure=wilson(int((of_pets != "").sum()), len(of_pets)),
        pets_unfamiliar=wilson(int((of_pets == "unfamiliar").sum()), len(of_pets)),
        groups={
            name: Group(
                photos=len(given),
                unsure=wilson(int((given != "").sum()), len(given)),
                unfamiliar=int((given == "unfamiliar").sum()),
                close_call=int((given == "close_call").sum()),
            )
            for name, given in because.items()
        },
    )


def _files(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {file.name: file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in sorted(archive.namelist()) if not name.endswith("/")}
