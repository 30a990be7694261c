"""Folders of labelled photos: which names say cats, and which say dogs."""

from collections.abc import Mapping
from typing import Final

from shared.contract import Label

CLASS_FOLDERS: Final[Mapping[str, Label]] = {"cat": "cats", "cats": "cats", "dog": "dogs", "dogs": "dogs"}


def label_of(folder: str, classes: Mapping[str, Label] = CLASS_FOLDERS) -> Label | None:
    """Label that a folder of this name gives its photos; None if it names no class. ``classes`` is in lower case."""
    return classes.get(folder.strip().lower())
