"""The writing of reports."""

import json
from pathlib import Path
from typing import Any

from shared.files import write_whole


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` as indented JSON, figures to four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(rounded(document), indent=1, ensure_ascii=False) + "\n").encode())


def rounded(part: Any) -> Any:
    """The document with its figures to four significant digits."""
    if isinstance(part, dict):
        return {name: rounded(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [rounded(value) for value in part]
    return float(f"{part:.4g}") if isinstance(part, float) else part
