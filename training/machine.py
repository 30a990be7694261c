"""Device, precision and loader processes of a run: detected, and printed with the reason."""

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from typing import Final

import torch

from shared import hardware
from training import group
from training.stage import StageError

# torchrun's words for the processes on this machine and this one's number, and what they are without it.
PLACE: Final = {"LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0}


@dataclass(frozen=True)
class Machine:
    """What the run computes with. Each choice is printed with its reason."""

    device: torch.device
    autocast: torch.dtype | None
    workers: int

    @property
    def tags(self) -> dict[str, str]:
        """Device and precision, for the record."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor()
        precision = str(self.autocast or torch.float32).removeprefix("torch.")
        return {"device": f"{self.device} {name}".strip(), "precision": precision}


def choose_machine() -> Machine:
    """Pick device, precision, threads and loader processes, and say why.

    Raises:
        StageError: there are more processes than GPUs.
    """
    here, number = (int(os.environ[name]) if group.size() > 1 else default for name, default in PLACE.items())
    cores = max(1, hardware.cores() // here)
    cuda = torch.cuda.is_available()
    if cuda and here > torch.cuda.device_count():
        raise StageError(f"{here} processes, but {torch.cuda.device_count()} GPUs: start one for each GPU")
    device = torch.device("cuda", number) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if group.size() > 1:
        torch.set_num_threads(cores)
        print(f"processes: {group.size()}, of which {here} share this machine's cores: {cores} threads each")
    print(f"device: {device} ({torch.cuda.get_device_name() if cuda else 'no CUDA device is visible'})")
    bf16 = torch.cuda.is_bf16_supported() if cuda else _cpu_has_bf16()
    print(
        f"precision: {'bfloat16 autocast' if bf16 else 'float32'} (bfloat16 arithmetic {'found' if bf16 else 'absent'})"
    )
    print(f"memory: {keep_freed_memory()}")
    print(f"waiting threads: {_how_threads_wait()}")
    # Measured on two cores: 39 ms a picture loading in this process, 48 with one loader process next to the network.
    workers = min(8, cores // 2) if cuda or cores > 4 else 0
    print(f"loader processes: {workers} ({cores} cores, {'a GPU' if cuda else 'and the network needs them'})")
    print(f"augmentation: {'on the GPU, a batch at once' if cuda else 'in the loader, one by one (no GPU)'}")
    return Machine(device, torch.bfloat16 if bf16 else None, workers)


def _cpu_has_bf16() -> bool:
    # Emulated bfloat16 is slower than float32; only these instruction sets compute it.
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _how_threads_wait() -> str:
    policy = os.environ.get("OMP_WAIT_POLICY")  # set in training/__init__.py, where the reason stands in full
    if policy == "PASSIVE":
        return "sleep (spinning would take cores from other work)"
    return f"as set by OMP_WAIT_POLICY={policy}" if policy else "the library's default (OMP_WAIT_POLICY is not set)"


def keep_freed_memory() -> str:
    """Let glibc's malloc keep freed memory instead of returning it to the kernel and faulting it in again.

    Measured on two cores: 33 → 13 ms a picture forward, 33 → 30 ms with the backward pass; before, up to 90 % of the
    time went to the kernel's page faults.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return "left to the system's malloc (not glibc)"
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    return "freed memory is kept for the next batch (glibc's malloc)"
