"""The extras of this project: which are installed, and what a module that is missing comes with."""

import re
import shlex
import sys
import traceback
from importlib.metadata import distributions, packages_distributions, requires
from pathlib import Path
from typing import Final

ROOMS: Final = ("shared", "training", "serving", "scoring", "ops")


def ours(error: ModuleNotFoundError) -> bool:
    """Whether it is this project that lacks the module: a fault, which no installation mends."""
    return _package(error.name) in ROOMS


def explain(command: str, extra: str, error: ModuleNotFoundError) -> str:
    """Say what a command lacks: its extra, or a package whose own installation is incomplete."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    importer = next((_package(name) for name in reversed(frames) if _package(name) != "importlib"), "")
    sources = packages_distributions()
    # A package that is installed lacks its own module; one that is not is lacking to the package that imports it.
    incomplete = wanted if (wanted := _package(error.name)) in sources else importer
    if incomplete in (*ROOMS, ""):
        return f"`catsdogs {command}` needs {error.name}, which comes with: {hint(extra)}"
    if incomplete in sys.stdlib_module_names:
        return f"`catsdogs {command}`: this Python was built without its module {error.name}"
    named = sources.get(incomplete, [incomplete])[0]
    return (
        f"`catsdogs {command}`: {named} lacks the module {error.name}: {_program()} install --force-reinstall {named}"
    )


def installed(extra: str) -> bool:
    """Whether all packages of an extra are there."""
    needed = [re.split(r"[^\w.-]", line)[0] for line in requires("cats-dogs") or () if f'extra == "{extra}"' in line]
    return all(any(distributions(name=name)) for name in needed)


def hint(extra: str) -> str:
    """The command that installs an extra here: no index has this project."""
    what = f"[{extra}]" if extra else ""
    checkout = Path(__file__).parent.parent
    if not (checkout / "pyproject.toml").is_file():
        return f"{_program()} install '.{what}', in a checkout"
    return f"{_program()} install -e {shlex.quote(_from_here(checkout) + what)}"


def _program() -> str:
    pip = Path(sys.executable).with_name("pip")
    return _from_here(pip) if pip.is_file() else f"{sys.executable} -m pip"


def _from_here(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]
