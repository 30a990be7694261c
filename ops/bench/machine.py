"""What the figures were measured on, without a name for it; and reports, written whole or not at all."""

import json
import os
import platform
from pathlib import Path
from typing import Any, Final

from ops.bench.processes import cores
from shared.files import write_whole

FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "i8mm")


def describe() -> dict[str, Any]:
    """Processor, cores, memory and the instructions that matter."""
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
    """Write ``document`` as indented JSON, whole or not at all; figures to four digits, since no more are meant."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(rounded(document), indent=1, ensure_ascii=False) + "\n").encode())


def rounded(part: Any) -> Any:
    """The document with its figures to four digits."""
    if isinstance(part, dict):
        return {name: rounded(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [rounded(value) for value in part]
    return float(f"{part:.4g}") if isinstance(part, float) else part
