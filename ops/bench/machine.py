"""The machine that was measured on, without its name; and the writing of reports."""

import json
import os
import platform
from pathlib import Path
from typing import Any, Final

from ops.bench.processes import cores
from ops.outputs import write_whole

FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "i8mm")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and vector instructions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    has = set(values.get("flags", values.get("Features", "")).split())
    return {
        "processor": values.get("model name", platform.machine()),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "flags": [flag for flag in FLAGS if flag in has],
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


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
