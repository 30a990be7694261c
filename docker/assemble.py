"""Lay out what goes into the image: Python without what a server never asks for, its packages, and what they link.

    python assemble.py base packages /image

leaves ``/image/base``, a root file system with the running Python and every library that it and the packages link,
and ``/image/packages``. Modules are there compiled and not as source, which nobody can edit on a read-only root and
which would be 16 MB. Runs in the Dockerfile's first stage, with the standard library alone.
"""

import compileall
import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

# Of the standard library: what installs, debugs, documents, tests and draws windows; mail, news and old formats; the
# slow twins in Python of what is there in C; codecs of East Asian text.
NOT_SERVED = (
    "__pycache__", "site-packages", "config-*", "*.a",
    "bdb.py", "doctest.py", "ensurepip", "idlelib", "lib2to3", "modulefinder.py", "pdb.py", "profile.py", "pstats.py",
    "pydoc*", "test", "trace.py", "tracemalloc.py", "unittest", "venv", "_sysconfigdata_*", "_test*", "xx*",
    "curses", "tkinter", "turtle*", "_curses*", "_tkinter*", "readline.*",
    "dbm", "sqlite3", "_dbm*", "_gdbm*", "_sqlite3*", "nis.*", "ossaudiodev.*", "audioop.*", "spwd.*",
    "aifc.py", "cgi.py", "cgitb.py", "chunk.py", "ftplib.py", "imaplib.py", "mailbox.py", "nntplib.py", "plistlib.py",
    "poplib.py", "smtplib.py", "sunau.py", "telnetlib.py", "wave.py", "webbrowser.py", "xdrlib.py", "xmlrpc",
    "optparse.py", "pickletools.py", "tarfile.py", "tomllib", "xml", "zoneinfo", "pyexpat.*", "_elementtree.*",
    "_bz2.*", "_crypt.*", "_lzma.*", "argparse.py", "nturl2path.py", "pprint.py", "statistics.py",
    "windows_*.py", "proactor_events.py", "_osx_support.py", "_statistics.*", "_zoneinfo.*", "_xx*", "_lsprof.*",
    "cookiejar.py", "server.py", "managers.py", "pool.py", "cmd.py", "fileinput.py", "_multibytecodec.*",
    "_pydatetime.py", "_pydecimal.py", "_pyio.py", "_codecs_*",
)  # fmt: skip
# Of the packages: onnxruntime's second copy of itself for C programs (35 MB that Python does not link) and its tools
# for making models, with the packages that only those import; tests;
# the parts of numpy, Pillow and the API's documentation that a picture never meets; stubs; scripts.
NOT_IMPORTED = (
    "__pycache__", "tests", "bin", "*.pyi", "*.pyx", "*.pxd", "*.pxi", "*.h", "*.c", "*.a",
    "google", "protobuf-*", "flatbuffers*", "packaging*", "quantization", "transformers", "tools", "datasets",
    "backend", "libonnxruntime.so.*",
    "f2py", "fft", "ma", "polynomial", "random", "testing", "recfunctions.py", "_simd.*", "_*_tests.*",
    "_imagingcms.*", "_imagingft.*", "_imagingmath.*", "_imagingmorph.*", "_imagingtk.*", "PdfParser.py",
    "redoc.js", "scalar.js", "testclient.py", "_testbase.py", "_trio.py", "websockets", "h11*", "zttp*", "idna*",
    "_winconsole.py", "shell_completion.py", "pytest_plugin.py", "RECORD",
    "ImageCms.py", "ImageDraw.py", "ImageFont.py", "ImageText.py",
)  # fmt: skip
# Pillow's readers of the formats that `shared.pixels` accepts, and of the Exif and frames within; no other is there
# for a hostile file to reach.
PLUGINS = {f"{name}ImagePlugin.py" for name in ("Avif", "Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP")}
USERS = "root:x:0:0:::\nnobody:x:65534:65534:::\ncatsdogs:x:10001:10001::/:\n"
GROUPS = "root:x:0:\nnogroup:x:65534:\ncatsdogs:x:10001:\n"


def linked(binaries: list[Path]) -> set[Path]:
    """The libraries that the dynamic linker brings for ``binaries``, itself among them, where it finds them."""
    found = set()
    for binary in binaries:
        told = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False).stdout
        if "not found" in told:
            raise SystemExit(f"{binary}: a library is missing\n{told}")
        found |= {Path(os.path.normpath(word)) for word in told.split() if word.startswith("/")}
    return found


def recorded(libraries: set[Path], root: Path) -> None:
    """Say which Debian packages the libraries come from, where scanners for vulnerabilities look in small images."""
    shutil.copy2("/etc/os-release", root / "etc/os-release")
    status = root / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    packages = set()
    for library in libraries:
        # The linker's name is a link to the file, and /lib one to /usr/lib; dpkg knows one of the names.
        names = [library, library.resolve()]
        names += [Path("/", *name.parts[2:]) for name in names if name.parts[1] == "usr"]
        told = subprocess.run(["dpkg", "-S", *names], capture_output=True, text=True, check=False).stdout
        packages |= {line.split(": ")[0] for line in told.splitlines()}
    for package in packages:
        entry = subprocess.run(["dpkg", "-s", package], capture_output=True, check=True).stdout
        (status / package.partition(":")[0]).write_bytes(entry)


def strip(path: Path) -> None:
    """Cut symbols and debugging sections off a 64-bit ELF file; a file of another kind stays as it is.

    The loader reads segments, which the program headers name; all that lies behind the last of them is for tools. The
    offsets are those of Elf64_Ehdr and Elf64_Phdr in elf(5). It saves 50 MB, and a slim base has no ``strip``.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return
    headers, size, count = *struct.unpack_from("<Q", data, 0x20), *struct.unpack_from("<HH", data, 0x36)
    end = headers + size * count
    for header in range(headers, end, size):
        offset, length = *struct.unpack_from("<Q", data, header + 0x08), *struct.unpack_from("<Q", data, header + 0x20)
        end = max(end, offset + length)
    stripped = bytearray(data[:end])
    struct.pack_into("<Q", stripped, 0x28, 0)  # where the sections' headers were
    struct.pack_into("<HHH", stripped, 0x3A, 0, 0, 0)  # their size, their number, the one with names
    path.write_bytes(stripped)


def compiled(tree: Path, becomes: str) -> None:
    """Put compiled modules in the place of a tree's sources; ``becomes`` is where tracebacks will say that it lies."""
    if not compileall.compile_dir(tree, quiet=1, stripdir=str(tree), prependdir=becomes, legacy=True):
        raise SystemExit(f"{tree}: a module does not compile")
    for source in tree.rglob("*.py"):
        source.unlink()


def main() -> None:
    """Copy what is kept, then what that links; compile."""
    base, packages, image = (Path(word) for word in sys.argv[1:])
    root, site = image / base, image / packages
    library = Path(sysconfig.get_path("stdlib"))
    interpreter = Path(sys.executable).resolve()
    copied = root / "usr/local/bin" / interpreter.name

    shutil.copytree(library, root / library.relative_to("/"), ignore=shutil.ignore_patterns(*NOT_SERVED))
    shutil.copytree(packages, site, ignore=shutil.ignore_patterns(*NOT_IMPORTED))
    for plugin in site.glob("PIL/*ImagePlugin.py"):
        if plugin.name not in PLUGINS:
            plugin.unlink()
    copied.parent.mkdir(parents=True)
    shutil.copy2(interpreter, copied)
    (copied.parent / "python3").symlink_to(copied.name)

    bundled = set(site.glob("*.libs/*"))
    libraries = linked([copied, *root.rglob("*.so"), *(path for path in site.rglob("*.so") if path not in bundled)])
    for path in bundled - libraries:
        path.unlink()
    for path in libraries - bundled:
        target = root / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)

    etc = root / "etc"
    etc.mkdir()
    (etc / "passwd").write_text(USERS)
    (etc / "group").write_text(GROUPS)
    (etc / "ld.so.conf").write_text(
        "".join(f"{place}\n" for place in sorted({path.parent for path in libraries - bundled}))
    )
    subprocess.run(["ldconfig", "-r", root], check=True)
    recorded(libraries - bundled, root)
    for path in [*root.rglob("*.so*"), *site.rglob("*.so*"), copied]:
        strip(path)
    compiled(root / library.relative_to("/"), str(library))
    compiled(site, "/usr/local/lib/site-packages")


if __name__ == "__main__":
    main()
