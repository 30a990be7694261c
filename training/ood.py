"""Out-of-distribution photos, of neither cats nor dogs: a file's answers by group, the most pet-like first."""

import re
import zipfile
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from shared.contract import Contract
from shared.exam import Outputs, Run
from shared.intervals import Interval, wilson
from shared.pixels import Pixels, RefusedImageError, pixels
from training.measure import auroc, reasons
from training.stage import StageError, progress

# A file may be named by its ImageNet class, whose WordNet number says what it shows: a range of them by group.
GROUPS: Final = {
    "wolves, foxes and other wild dogs": range(2_114_000, 2_121_000),
    "big cats": range(2_125_000, 2_131_000),
    "other animals": range(1_300_000, 2_666_000),
    "things": range(2_666_000, 20_000_000),
}
OTHER: Final = "anything else"


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


def read(path: Path) -> dict[str, list[Pixels]]:
    """Read a zip file of photos, or a folder, by group; each photo uint8 [224, 224, 3].

    Raises:
        StageError: no photo in it can be read.
    """
    try:
        files = _files(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise StageError(f"{path}: {error}") from error
    photos: dict[str, list[Pixels]] = {name: [] for name in (*GROUPS, OTHER)}
    for name, data in progress(files.items(), f"reading {path.name}"):
        try:
            photos[group(name)].append(pixels(data))
        except RefusedImageError:
            continue  # such as a list of names next to the photos
    if not any(photos.values()):
        raise StageError(f"{path}: no photo in it can be read")
    return {name: some for name, some in photos.items() if some}


def group(name: str) -> str:
    """Group of the photo in a file of this name."""
    found = re.match(r"n(\d{8})", Path(name).name)
    number = int(found[1]) if found else 0
    return next((title for title, numbers in GROUPS.items() if number in numbers), OTHER)


def grouped_answers(run: Run, photos: dict[str, list[Pixels]], what: str) -> dict[str, Outputs]:
    """Run a file on every photo, by group."""
    return {
        name: Outputs(
            *(np.concatenate(parts) for parts in zip(*(run(photo[np.newaxis]) for photo in some), strict=True))
        )
        for name, some in progress(photos.items(), what, unit=" groups")
    }


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
