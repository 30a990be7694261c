"""Fetch: copy the photos unchanged to ``data/raw/<source>/{cats,dogs}/``.

catsdogs fetch                              # the Kaggle set, through kagglehub
catsdogs fetch photos/                      # a folder that has Cat/ and Dog/ somewhere inside
catsdogs fetch petimages.zip more.zip       # one or several zip files
"""

import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import kagglehub

from shared.contract import CLASSES
from shared.folders import label_of
from training.stage import StageError, progress, whole_directory

KAGGLE_HANDLE: Final = "bhavikjikadara/dog-and-cat-classification-dataset"


def fetch(sources: Iterable[str], out: Path) -> dict[str, int]:
    """Copy every file of the class folders of ``sources`` to ``out``; returns files per class.

    Raises:
        StageError: a source is missing or unreadable, or a class has no file in any of them.
    """
    counts = dict.fromkeys(CLASSES, 0)
    with whole_directory(out) as aside:
        for source in sources:
            path = _kaggle() if source == "kaggle" else Path(source).expanduser()
            _copy(path, _unused(aside / path.stem), counts)
        empty = [label for label, count in counts.items() if not count]
        if empty:
            raise StageError(
                f"no files of {' or '.join(empty)} in {', '.join(sources)}: expected a Cat and a Dog folder with files"
            )
    return counts


def _kaggle() -> Path:
    print(f"fetching {KAGGLE_HANDLE} from Kaggle")
    try:
        return Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    # kagglehub raises what requests, urllib3 and its own client raise; all mean the same to the user.
    except Exception as error:
        raise StageError(
            f"Kaggle did not deliver {KAGGLE_HANDLE} ({type(error).__name__}: {error}); "
            "download the zip yourself and pass it: make pipeline SOURCE=archive.zip"
        ) from error


def _copy(path: Path, out: Path, counts: dict[str, int]) -> None:
    if not path.exists():
        raise StageError(f"{path}: no such file or folder")
    if path.is_dir():
        found = [(place, file) for file in sorted(path.rglob("*")) if (place := _place(file.relative_to(path)))]
        for (label, name), file in progress(found, f"copying {path.name}", unit=" files"):
            if file.is_file():
                _write(out / label, name, file.read_bytes(), counts)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for (label, name), member in progress(list(_members(archive)), f"unpacking {path.name}", unit=" files"):
                _write(out / label, name, archive.read(member), counts)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise StageError(f"{path}: not a readable zip file ({error})") from error


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[tuple[str, str], zipfile.ZipInfo]]:
    for member in archive.infolist():
        place = None if member.is_dir() else _place(PurePosixPath(member.filename))
        if place:
            yield place, member


def _place(path: Path | PurePosixPath) -> tuple[str, str] | None:
    """Class and file name for a path such as ``PetImages/Cat/7.jpg``; None if it is not in a class folder.

    Only the last two parts are used, so a member named ``../../x`` cannot leave the folder.
    """
    if len(path.parts) < 2 or path.name.startswith(".") or "__MACOSX" in path.parts:
        return None
    label = label_of(path.parts[-2])
    return (label, path.name) if label else None


def _write(folder: Path, name: str, data: bytes, counts: dict[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _unused(folder / name).write_bytes(data)
    counts[folder.name] += 1


def _unused(path: Path) -> Path:
    """``path``, or with -2, -3, … before its suffix if that name is taken."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate
