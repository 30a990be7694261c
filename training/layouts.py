"""Layouts: which animal a file of a source shows, and which side it was meant for, by its path.

Reads the nearest folder that names a class (``Cat/Abyssinian/1.jpg``), else the file's own name (``cat.0.jpg``, or
``images/Abyssinian_1.jpg`` of the Oxford-IIIT Pet data set), else the name of the source (``cats.zip``).
"""

import re
from collections.abc import Mapping
from typing import Final

from shared.contract import Label
from shared.folders import label_of
from training.sources import ARCHIVES, File

WORD: Final = re.compile(r"[^\W\d_]+")
SIDES: Final = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# Oxford-IIIT has all photos in one folder, named after their breeds: of cats in capitals, of dogs in small letters.
OXFORD_FOLDER: Final = "images"
OXFORD_CATS: Final = """
    Abyssinian Bengal Birman Bombay British_Shorthair Egyptian_Mau Maine_Coon Persian Ragdoll Russian_Blue Siamese
    Sphynx"""
OXFORD_DOGS: Final = """
    american_bulldog american_pit_bull_terrier basset_hound beagle boxer chihuahua english_cocker_spaniel
    english_setter german_shorthaired great_pyrenees havanese japanese_chin keeshond leonberger miniature_pinscher
    newfoundland pomeranian pug saint_bernard samoyed scottish_terrier shiba_inu staffordshire_bull_terrier
    wheaten_terrier yorkshire_terrier"""
OXFORD: Final[Mapping[str, Label]] = {
    **dict.fromkeys(OXFORD_CATS.split(), "cats"),
    **dict.fromkeys(OXFORD_DOGS.split(), "dogs"),
}


def stem(name: str) -> str:
    """The name of a folder, or of an archive without its suffix."""
    suffix = next((suffix for suffix in ARCHIVES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def label(file: File, source: str, classes: Mapping[str, Label]) -> Label | None:
    """Label of a file of the source of this name; None if nothing names its class."""
    if file.label is not None and (said := label_of(file.label, classes)):
        return said
    *folders, name = file.name.split("/")
    for folder in reversed(folders):
        if said := label_of(stem(folder), classes):
            return said
    if [stem(source), *folders][-1] == OXFORD_FOLDER and (said := OXFORD.get(re.split(r"_\d", name)[0])):
        return said
    words = WORD.findall(name.rpartition(".")[0])
    if words and {label_of(word, classes) for word in words} - {None} == {said := label_of(words[0], classes)}:
        return said
    return label_of(stem(source), classes)


def side(name: str, source: str) -> str | None:
    """Side that the nearest folder, or the table, of this file names; None if none does."""
    for part in reversed([source, *name.split("/")[:-1]]):
        word = WORD.match(part)
        if word and (said := SIDES.get(word[0].lower())):
            return said
    return None
