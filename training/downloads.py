"""Downloads: the collections that ``fetch`` brings by their names, with what is known of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import kagglehub
import kagglehub.config

from training.params import Collection
from training.stage import StageError, whole_directory

KAGGLE_HANDLE: Final = "bhavikjikadara/dog-and-cat-classification-dataset"
OXFORD_SPECIES: Final = {"1": "cat", "2": "dog"}  # as annotations/list.txt numbers them


@dataclass(frozen=True)
class Download:
    """A collection, how it is fetched to a place on this machine, and the archive that does as well."""

    collection: Collection
    fetch: Callable[[], Path]
    archive: str


def download(source: str) -> Path:
    """Download the collection that ``KNOWN`` lists under this name, unless that is done, and say where it lies.

    Raises:
        StageError: it could not be downloaded.
    """
    known = KNOWN[source]
    print(f"fetching {source}: {known.collection.origin}")
    try:
        return known.fetch()
    # kagglehub and torchvision raise what requests, urllib and tarfile raise; all mean the same to the user.
    except Exception as error:
        raise StageError(
            f"{source} could not be downloaded ({type(error).__name__}: {error}); download {known.archive} from "
            f"{known.collection.origin} yourself and pass it: make pipeline SOURCE={known.archive}"
        ) from error


def _kaggle() -> Path:
    return Path(kagglehub.dataset_download(KAGGLE_HANDLE))


def _oxford() -> Path:
    """A table of the photos that the annotations list; so the masks beside them are not taken for photos."""
    from torchvision.datasets import OxfordIIITPet  # noqa: PLC0415  # seconds for torch, which no other source needs

    cache = Path(kagglehub.config.get_cache_folder()).with_name("cats-dogs")
    table = cache / "oxford-iiit-pet/labels.csv"
    if not table.exists():
        with whole_directory(table.parent) as aside:  # torchvision takes a download that was cut short for a whole one
            OxfordIIITPet(aside, download=True)
            unpacked = aside / "oxford-iiit-pet"
            listed = (unpacked / "annotations/list.txt").read_text().splitlines()
            rows = [line.split() for line in listed if not line.startswith("#")]
            lines = [f"{unpacked.name}/images/{name}.jpg,{OXFORD_SPECIES[species]}\n" for name, _, species, _ in rows]
            (aside / table.name).write_text("path,label\n" + "".join(lines))
            for packed in unpacked.glob("*.tar.gz"):
                packed.unlink()
    return table


KNOWN: Final = {
    "kaggle": Download(
        Collection(
            source="kaggle",
            name="petimages",
            licence="research use, no re-publication",
            origin=f"Microsoft's PetImages, https://www.kaggle.com/datasets/{KAGGLE_HANDLE}",
        ),
        _kaggle,
        "archive.zip",
    ),
    "oxford-iiit-pet": Download(
        Collection(
            source="oxford-iiit-pet",
            name="oxford-iiit-pet",
            licence="CC BY-SA 4.0",
            origin="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        ),
        _oxford,
        "images.tar.gz",
    ),
}
