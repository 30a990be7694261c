"""The servers that are measured: how each is started, and the variants of which the fastest is kept."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ops.bench.errors import BenchError
from ops.bench.processes import ROOT, ServerProcess, free_port
from shared.hardware import cores

# The bare limit, the service of this checkout, of another one, and what others would have written.
Kind = Literal["raw", "ours", "also", "peer"]
Precision = Literal["fp32", "int8"]
MODELS: Final = {name: ROOT / "serving" / "models" / f"cats-dogs.{name}.onnx" for name in ("fp32", "int8")}
BASELINES: Final = "ops.bench.baselines"


@dataclass(frozen=True)
class Programs:
    """The service's ``catsdogs``, and a Python with the peers' packages."""

    service: Path
    peers: Path

    @property
    def python(self) -> Path:
        """The Python that runs the service and the bare limit."""
        return self.service.with_name("python")


@dataclass(frozen=True)
class Variant:
    """One way to run a server; ``arguments`` are added to its command."""

    what: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerSpec:
    """A server, or the bare limit."""

    name: str
    title: str
    kind: Kind
    precision: Precision
    variants: tuple[Variant, ...] = (Variant("as it is"),)
    checkout: Path = ROOT  # of a service

    def start(self, programs: Programs, variant: Variant) -> ServerProcess:
        """Start the server; see :meth:`ServerProcess.wait`."""
        port = free_port()
        environment = {"BENCH_MODEL": str(MODELS[self.precision]), "BENTOML_DO_NOT_TRACK": "True", **NO_CALLS}
        if self.kind == "ours":
            environment = {"CATSDOGS_MODEL": str(MODELS["fp32"])} if self.precision == "fp32" else {}
        elif self.kind == "also":
            environment = {"PYTHONPATH": str(self.checkout)}
        command = {
            "ours": [str(programs.service), "serve", "--port", str(port)],
            "also": [str(self.python(programs)), "-m", "serving", "--port", str(port)],
            "fastapi": [
                *(str(programs.peers), "-m", "uvicorn", f"{BASELINES}.fastapi_server:app"),
                *("--port", str(port), "--no-access-log", "--log-level", "warning"),
            ],
            "litserve": [str(programs.peers), "-m", f"{BASELINES}.litserve_server", "--port", str(port)],
            "bentoml": [
                *(str(programs.peers), "-m", "bentoml", "serve", f"{BASELINES}.bentoml_server:Pets"),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
        }[self.name if self.kind == "peer" else self.kind]
        ready = "/health/ready" if self.kind in {"ours", "also"} else None
        environment |= variant.environment
        return ServerProcess([*command, *variant.arguments], environment, port, ready, self.checkout)

    def fastest(self, tried: list[dict[str, Any]]) -> Variant:
        """The variant with the highest rate of those tried; the first if none was."""
        rates = {line["variant"]: line["rate"] for line in tried}
        return max(self.variants, key=lambda variant: rates.get(variant.what, 0.0))

    def python(self, programs: Programs) -> Path:
        """The Python of a service from another checkout: the checkout's own ``.venv`` if it has one."""
        own = self.checkout / ".venv" / "bin" / "python"
        return own if own.exists() else programs.python


# Nothing that is measured may wait for a server that counts its users.
NO_CALLS: Final = {"DO_NOT_TRACK": "1", "LITSERVE_DISABLE_TELEMETRY": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
N: Final = str(cores())
OWN_THREADS: Final = {"BENCH_THREADS": "0"}

FASTAPI: Final = (
    Variant("1 worker, 1 thread a run"),
    Variant(f"1 worker, 1 thread a run, {N} requests at once", environment={"BENCH_AT_ONCE": N}),
    Variant("1 worker, onnxruntime's own threads", environment=OWN_THREADS),
    Variant(f"{N} workers, 1 thread a run", ("--workers", N)),
    Variant(f"{N} workers, 1 thread a run, 1 request at once", ("--workers", N), {"BENCH_AT_ONCE": "1"}),
)
LITSERVE: Final = (
    Variant(f"{N} workers, 1 thread a run", ("--workers", N)),
    Variant("1 worker, onnxruntime's own threads", ("--workers", "1"), OWN_THREADS),
    Variant(f"{N} workers, {N} API servers, 1 thread a run", ("--workers", N, "--api-servers", N)),
    Variant(f"{N} workers, 1 thread a run, fast queue", ("--workers", N, "--fast-queue")),
    Variant(f"{N} workers, 1 thread a run, batches of 8", ("--workers", N, "--batch", "8")),
    Variant("1 worker, onnxruntime's own threads, batches of 8", ("--workers", "1", "--batch", "8"), OWN_THREADS),
)
BENTOML: Final = (
    Variant(f"{N} workers, 1 thread a run", environment={"BENCH_WORKERS": N}),
    Variant("1 worker, onnxruntime's own threads", environment=OWN_THREADS),
    Variant(f"1 worker, {N} requests at once, 1 thread a run", environment={"BENCH_AT_ONCE": N}),
    Variant(f"{N} workers, 1 thread a run, batches of up to 8", environment={"BENCH_WORKERS": N, "BENCH_BATCH": "8"}),
    Variant(
        "1 worker, onnxruntime's own threads, batches of up to 32", environment={"BENCH_BATCH": "32"} | OWN_THREADS
    ),
)

SERVERS: Final = (
    ServerSpec("raw-fp32", "the bare limit, fp32", "raw", "fp32"),
    ServerSpec("raw-int8", "the bare limit, int8", "raw", "int8"),
    ServerSpec("ours-int8", "`catsdogs serve`, as it ships (int8)", "ours", "int8"),
    ServerSpec("ours-fp32", "`catsdogs serve`, fp32", "ours", "fp32"),
    ServerSpec("fastapi", "FastAPI, fp32", "peer", "fp32", FASTAPI),
    ServerSpec("litserve", "LitServe, fp32", "peer", "fp32", LITSERVE),
    ServerSpec("bentoml", "BentoML, fp32", "peer", "fp32", BENTOML),
)


def chosen(names: str) -> list[ServerSpec]:
    """The servers whose names start with one of ``names``, separated by commas; all for an empty string.

    Raises:
        BenchError: no server has such a name.
    """
    found = []
    for name in filter(None, names.split(",")):
        these = [spec for spec in SERVERS if spec.name.startswith(name)]
        if not these:
            raise BenchError(f"{name}: no such server; there are {', '.join(e.name for e in SERVERS)}")
        found += these
    return [spec for spec in SERVERS if spec in found or not names]


def also(argument: str) -> ServerSpec:
    """The service of another checkout, as it ships there, from ``NAME=CHECKOUT``.

    Raises:
        BenchError: the name is taken, or there is no service in the checkout.
    """
    name, _, checkout = argument.partition("=")
    path = Path(checkout).absolute()
    if not (name and checkout) or name in {spec.name for spec in SERVERS}:
        raise BenchError(f"{argument}: NAME=CHECKOUT needs a name of its own")
    if not (path / "serving" / "__main__.py").exists():
        raise BenchError(f"{checkout}: not a checkout with a service")
    return ServerSpec(name, f"`{name}`, int8", "also", "int8", checkout=path)


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of packages that a Python has.

    Raises:
        BenchError: it cannot be run, or lacks one.
    """
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    try:
        done = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchError(f"{python} cannot be run: {error.strerror}; `make bench-serve` makes it") from error
    if done.returncode:
        raise BenchError(f"{python} lacks a package: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found
