"""What the service overrides and uses of uvicorn and asyncio is there: much of it is no public interface."""

import asyncio
import inspect
from types import ModuleType

import pytest
import uvicorn.server
from uvicorn.protocols.http import httptools_impl

from serving.http.connections import Connection
from serving.http.server import Listener, Server

CONNECTION = {
    *("check", "close_if_quiet", "gone", "refuse"),
    *(
        "_fault",
        "_give_up_input",
        "_linger",
        "_note_idle",
        "_parse",
        "_room",
        "_take_absolute",
        "_unanswered",
        "_watch_writing",
    ),
}


@pytest.mark.parametrize(
    ("ours", "base", "added"),
    [
        (Connection, httptools_impl.HttpToolsProtocol, CONNECTION),
        (Listener, uvicorn.server.Server, set()),
        (Server, Listener, {"_end_if_refused"}),
    ],
)
def test_every_method_is_uvicorn_s_or_known_to_be_ours(ours: type, base: type, added: set[str]) -> None:
    methods = {name for name, value in vars(ours).items() if inspect.isfunction(value) or isinstance(value, property)}
    assert methods - added - {name for name in methods if hasattr(base, name)} == set()


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            httptools_impl,
            "connections cycle expect_100_continue flow headers loop parser pipeline scope timeout_keep_alive "
            "transport url disconnected keep_alive message_event response_complete response_started",
        ),
        (uvicorn.server, "config force_exit server_state servers should_exit started"),
    ],
)
def test_every_attribute_that_is_read_or_set_is_uvicorn_s(module: ModuleType, names: str) -> None:
    source = inspect.getsource(module)
    assert [name for name in names.split() if f"self.{name}" not in source] == []


def test_what_is_called_is_there() -> None:
    for name in ("_unset_keepalive_if_required", "_start_asgi_task", "_should_upgrade", "_unsupported_upgrade_warning"):
        assert callable(getattr(httptools_impl.HttpToolsProtocol, name))
    assert callable(uvicorn.Server._serve)
    assert isinstance(httptools_impl.STATUS_LINE[200], bytes)


async def test_a_transport_reads_as_much_at_a_time_as_it_is_told() -> None:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with server:
        transport, _ = await asyncio.get_running_loop().create_connection(
            asyncio.Protocol, *server.sockets[0].getsockname()
        )
        assert transport.max_size == 262_144  # type: ignore[attr-defined]
        transport.close()
