"""Own: a folder in which the pipeline runs on your photographs, so that no file that git keeps changes.

python -m training.own own --source "a.zip b.zip" --classes "cats=kitten dogs=puppy" --set "train.epochs=2"

The folder has its own DVC, parameters, data, models and reports. Its ``fetch.digest`` and ``gather.digest`` follow from
what the sources hold, so ``dvc repro`` there runs again when that changed.
"""

import hashlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import click
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from training import downloads, gather, params, sources, stage
from training.stage import StageError

LINKED: Final = ("shared", "training", "serving")  # what the stages depend on, and where `promote` puts a model
PARAMS: Final = Path("params.yaml")


def prepare(folder: Path, source: str, values: dict[str, Any]) -> None:
    """Make the folder, or bring it up to date.

    Args:
        folder: where; below the root of the checkout, which is the working directory.
        source: one path or several, quoted as for a shell.
        values: further parameters by their dotted names.

    Raises:
        StageError: a source is missing, or a parameter has another name or cannot have this value.
    """
    places = [source] if _exists(source) else shlex.split(source)
    known = downloads.KNOWN
    paths = [place if place in known else str(Path(place).expanduser().absolute()) for place in places]
    for path in paths:
        if path not in known and not _exists(path):
            raise StageError(f"{path}: no such file or folder")
    digests = [sources.digest(Path(path)) for path in paths if path not in known]
    others = params.load(PARAMS).export.others
    folder.mkdir(exist_ok=True)
    for name in LINKED:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path(name).absolute())
    for name in ("dvc.yaml", PARAMS.name):
        shutil.copy(name, folder / name)
    for name, value in {
        "fetch.source": paths,
        "fetch.digest": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "export.others": [str(Path(other).absolute()) for other in others],
        **values,
    }.items():
        params.assign(folder / PARAMS, name, value)
    if (gathered := params.load(folder / PARAMS).gather).samples:
        gathered = gather.absolute(gathered)
        params.assign_gather(
            folder / PARAMS, gathered, gather.digest(gathered, folder / stage.GATHERED, folder / stage.GATHERED_TABLE)
        )
    if not (folder / ".dvc").exists():
        subprocess.run([sys.executable, "-P", "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=folder, check=True)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # many paths are longer than one may be
        return False


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--source", required=True)
@click.option("--classes", default="")
@click.option("--set", "assignments", default="")
def main(folder: Path, source: str, classes: str, assignments: str) -> None:
    """Prepare the folder for ``dvc repro``."""
    try:
        values = {"fetch.classes": params.classes_of(classes)} if classes else {}
        for assignment in shlex.split(assignments):
            name, _, text = assignment.partition("=")
            values[name] = YAML(typ="safe").load(text)
        prepare(folder, source, values)
    except (StageError, ValueError, YAMLError) as error:
        raise SystemExit(f"Error: {error}") from error


if __name__ == "__main__":
    main()
