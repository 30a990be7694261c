"""The parent of the lanes: a process with everything imported and nothing running, which forks one when asked.

    python -m serving.engine.forker DESCRIPTOR MODULE

Forking the front process would copy its event loop and threads. Unlike the forkserver of ``multiprocessing``, this one
needs no folder for a socket (a container may have no place to write), no second process that tracks resources (10 MB),
does not run the main module again in each child, and tells how a child ended.
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
    """Fork a lane for each `Start` that comes with its socket and memory file, and answer its process id.

    A message that is a process id instead is answered with that lane's exit code, negative for a signal.

    What a terminal or systemd sends to every process is for the front process: this one and its lanes end with it.
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
                # Held to the end, so that hanging up is the last thing that a lane does.
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
