"""The image's health check: exit code 0 if the service in this container is ready.

    python3 -IS ready.py

It runs every two seconds, perhaps on the service's only core, so it imports as little as possible.
"""

import os
import socket
import sys


def ready(port: int, seconds: float = 1.5) -> bool:
    """Whether the service on this machine answers 200 to /health/ready within ``seconds``."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not ready(int(os.environ.get("CATSDOGS_PORT", "8000"))))
