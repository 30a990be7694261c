"""A real HAProxy with the shipped configuration, the DNS server that it asks, and clients that load it."""

import re
import socket
import socketserver
import struct
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import ClassVar, Final

import httpx

from tests.conftest import ROOT
from tests.e2e.test_process import CAT, Process
from tests.waiting import PATIENCE, until

CONFIG: Final = ROOT / "ops/edge/haproxy.cfg"
CLIENTS: Final = 4


class Edge:
    """HAProxy with the shipped configuration, before replicas at known addresses or those that a DNS server knows."""

    def __init__(self, haproxy: str, folder: Path, replicas: list[Process] | None, **settings: str) -> None:
        config = CONFIG.read_text()
        if replicas is not None:
            lines = "\n".join(f"    server r{n} {_address(replica)}" for n, replica in enumerate(replicas))
            config, templates = re.subn(r"^ *server-template .*$", lines, config, flags=re.MULTILINE)
            assert templates == 2  # for predictions and for feedback
        if seconds := settings.pop("timeout_server", ""):
            config = re.sub(r"timeout server \S+", f"timeout server {seconds}", config)
        (folder / "haproxy.cfg").write_text(config)
        ports = free_ports(2)
        self.address = ("127.0.0.1", ports[0])
        self.url, self.watch = (f"http://127.0.0.1:{port}" for port in ports)
        self.log = (folder / "edge.log").open("w+")
        self.process = subprocess.Popen(
            [haproxy, "-db", "-f", folder / "haproxy.cfg"],
            env={"EDGE_PORT": str(ports[0]), "EDGE_WATCH_PORT": str(ports[1]), **settings},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self._replicas = len(replicas or ())

    def wait(self) -> None:
        """Wait until it has looked at every replica: a server counts as up until its first check."""
        until(lambda: self._checked() == self._replicas)

    def _checked(self) -> int:
        try:
            page = httpx.get(f"{self.watch}/metrics").text
        except httpx.TransportError:
            assert self.process.poll() is None, self.said()
            return -1
        checked = r'^haproxy_server_check_status\{proxy="service",.*state="(?:L7OK|L7STS|L4CON)"\} 1$'
        return len(re.findall(checked, page, re.MULTILINE))

    def up(self) -> int:
        """How many replicas it has in its pool."""
        page = httpx.get(f"{self.watch}/metrics").text
        return len(re.findall(r'^haproxy_server_status\{proxy="service",.*state="UP"\} 1$', page, re.MULTILINE))

    def said(self) -> str:
        """What it has logged."""
        return Path(self.log.name).read_text()

    def stop(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        self.log.close()


class Load:
    """Clients that ask for predictions, each on a connection that it keeps, until they are told to stop."""

    def __init__(self, url: str) -> None:
        self.answers: Counter[str] = Counter()
        self._stop = threading.Event()
        self._clients = [threading.Thread(target=self._ask, args=(url,)) for _ in range(CLIENTS)]

    def _ask(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=PATIENCE) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post("/predict", files={"file": CAT})
                except httpx.RemoteProtocolError as error:
                    self.answers[str(error)] += 1
                    continue
                self.answers[answer.json().get("verdict") or answer.json()["code"]] += 1

    def more(self, count: int = 40) -> None:
        """Wait for this number of further answers."""
        wanted = self.answers.total() + count
        until(lambda: self.answers.total() >= wanted)

    def failed(self) -> int:
        """How many have not got a verdict so far."""
        return self.answers.total() - self.answers["cats"]

    def __enter__(self) -> "Load":
        for client in self._clients:
            client.start()
        self.more()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for client in self._clients:
            client.join()


class Names(socketserver.BaseRequestHandler):
    """A DNS server as Docker's: it knows the addresses of the containers of that name that run, or no such name."""

    known: ClassVar[set[str]] = set()

    def handle(self) -> None:
        query, connection = self.request
        end = query.index(0, 12) + 5  # after the header and the question's name: its type and class
        wanted = sorted(self.known) if query[end - 4 : end - 2] == b"\0\1" else []
        header = query[:2] + struct.pack(">5H", 0x8180 if self.known else 0x8183, 1, len(wanted), 0, 0)
        answers = (b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 0, 4) + socket.inet_aton(address) for address in wanted)
        connection.sendto(header + query[12:end] + b"".join(answers), self.client_address)


def _address(replica: Process) -> str:
    return replica.url.replace("http://localhost", "127.0.0.1")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
