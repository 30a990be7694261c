"""Is the service in this container ready? Exit code 0 if so: the image's health check.

    python3 -IS ready.py

Asked every two seconds of the one core that the service itself may have, so it imports as little as it can.
"""

import os
import socket
import sys


def ready(port: int, seconds: float = 1.5) -> bool:
    """Ask a service on this machine; False for any answer but 200, and for none within ``seconds``."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not ready(int(os.environ.get("CATSDOGS_PORT", "8000"))))
