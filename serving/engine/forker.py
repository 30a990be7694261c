"""The parent of the lanes: a process that has imported everything, runs nothing, and forks a lane on request.

    python -m serving.engine.forker DESCRIPTOR MODULE

Forking the front process would copy its event loop and threads. Unlike the forkserver of ``multiprocessing``, this one
needs no folder for a socket (a container may have none to write to) and no resource tracker process (10 MB), does not
run the main module again in each child, and tells how a child ended.
"""

import importlib
import os
import signal
import socket
import struct
import sys
import traceback

import msgspec

from serving.engine.wire import Start

PID = struct.Struct("<i")
MAX_MESSAGE = 65_536


def main(control: socket.socket, module: str) -> None:
    """Serve requests from ``control``: fork a lane, or reap one.

    A `Start`, with descriptors of a socket and a memory file, is answered with the new lane's process id. A process id
    is answered with that lane's exit code, negative for a signal.

    Signals that a terminal or systemd sends to every process are for the front process: this one ends with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    worker = importlib.import_module(module)
    decoder = msgspec.msgpack.Decoder(Start)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 2)
        if not message:
            return
        if not descriptors:
            _, status = os.waitpid(PID.unpack(message)[0], 0)
            control.send(PID.pack(os.waitstatus_to_exitcode(status)))
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                control.close()
                # Kept until the process ends, so that the front process sees it close only then.
                connection = socket.socket(fileno=descriptors[0])
                worker.main(decoder.decode(message), connection, descriptors[1])
                code = 0
            except ConnectionError:  # the front process hung up
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        for descriptor in descriptors:
            os.close(descriptor)
        control.send(PID.pack(pid))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
