"""Folders of labelled photos: which names say cats, and which say dogs."""

from typing import Final

from shared.contract import Label

CLASS_FOLDERS: Final[dict[str, Label]] = {"cat": "cats", "cats": "cats", "dog": "dogs", "dogs": "dogs"}


def label_of(folder: str) -> Label | None:
    """Label that a folder of this name gives its photos; None if it names no class."""
    return CLASS_FOLDERS.get(folder.lower())
