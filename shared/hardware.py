"""What figures were measured on, without a name for the machine."""

import os
import platform
from pathlib import Path
from typing import Any, Final

CPUINFO: Final = Path("/proc/cpuinfo")
# Instructions that matter to networks in float, bfloat16 or int8.
FLAGS: Final = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm",
)  # fmt: skip


def cores() -> int:
    """Cores that this process may use, by its affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Processor, cores, memory in GB (10⁹ bytes), instructions, operating system and Python."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    has = set(values.get("flags", values.get("Features", "")).split())
    return {
        "processor": values.get("model name", platform.processor() or platform.machine()),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9),
        "flags": [flag for flag in FLAGS if flag in has],
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
    }
