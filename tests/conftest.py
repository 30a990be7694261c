"""Real bytes and real servers for every room's tests."""

import io
import os
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from serving.settings import SHIPPED_MODEL

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT.parent / "shared" / "data" / "petimages-photos.zip"
# Of the tests of `make test`, and of `make test-slow`.
LONGEST = ("test_promote.py", "test_killed.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: at the end, one process would be alone with one for minutes."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The model file that the repository ships."""
    return SHIPPED_MODEL


@pytest.fixture(scope="session")
def photos() -> list[tuple[str, bytes]]:
    """Real photographs as (label, file), cats and dogs in turn; a user's clone has none, CI must."""
    if not PHOTOS.exists():
        if os.environ.get("CI") and not os.environ.get("NO_PHOTOGRAPHS"):
            pytest.fail(f"{PHOTOS} is missing, and CI must not pass without real photographs")
        pytest.skip("no real photographs beside this checkout")
    with zipfile.ZipFile(PHOTOS) as archive:
        return [
            (label, archive.read(f"PetImages/{folder}/{number}.jpg"))
            for number in range(60)
            for label, folder in (("cats", "Cat"), ("dogs", "Dog"))
            if f"PetImages/{folder}/{number}.jpg" in archive.namelist()
        ]


def measured() -> dict[str, str]:
    """What a process of ours needs in its environment for its lines to count in the coverage, if that is measured."""
    coverage = sys.modules.get("coverage")  # not imported, since tests of the service alone go without
    if coverage is None or coverage.Coverage.current() is None:
        return {}
    return {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"), "COVERAGE_FILE": str(ROOT / ".coverage")}


def encoded(image: Image.Image, name: str, **options: object) -> bytes:
    """The image as a file of the given format."""
    data = io.BytesIO()
    image.save(data, name, **options)
    return data.getvalue()


def blobs(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A picture with something to see at every scale, different for each seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        x, y, radius = rng.integers(0, size[0]), rng.integers(0, size[1]), rng.integers(4, size[0] // 6)
        colour = tuple(rng.integers(0, 255, 3).tolist())
        draw.ellipse((int(x - radius), int(y - radius), int(x + radius), int(y + radius)), fill=colour)
    return image


@pytest.fixture
def cat_or_dog(tmp_path: Path) -> Path:
    """A folder with 60 generated "cats" (striped) and 60 "dogs" (dotted) as Kaggle lays them out."""
    return draw_photos(tmp_path / "photos", 60)


def draw_photos(folder: Path, each: int) -> Path:
    """Draw pictures of two kinds that a small network learns to tell apart, each unlike every other."""
    rng = random.Random(7)
    for name in ("Cat", "Dog"):
        (folder / "PetImages" / name).mkdir(parents=True)
        for number in range(each):
            image = blobs(rng.randrange(2**31), (200, 150)).point([value // 3 + 60 for value in range(256)] * 3)
            draw = ImageDraw.Draw(image)
            colour = (250, 140, 60) if name == "Cat" else (40, 60, 250)
            for place in range(0, 200, 20):
                if name == "Cat":
                    draw.line((place, 0, place + rng.randrange(30), 150), fill=colour, width=6)
                else:
                    y = rng.randrange(150)
                    draw.ellipse((place, y, place + 14, y + 14), fill=colour)
            image.save(folder / "PetImages" / name / f"{number}.jpg", quality=92)
    return folder


@pytest.fixture(scope="session")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all tests: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow_store: str) -> Path:
    """Work in an empty folder: the pipeline's paths are relative."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    return folder
