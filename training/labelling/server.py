"""The page's server: for one person, on this machine, without anything from elsewhere."""

import itertools
import re
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.contract import Actual
from shared.pixels import RefusedImageError, pixels
from shared.samples import Sample
from training import decisions
from training.decisions import Decision, Id, Standing
from training.labelling.evidence import Evidence
from training.labelling.samples import Samples, most_informative
from training.stage import StageError

T = TypeVar("T")

HOST: Final = "127.0.0.1"
LATEST: Final = 50  # decisions that a page may take back
WEB: Final = Path(__file__).parent / "web"
ASSETS: Final = ("icon.svg", "label.css", "label.js")
# With any port, since the page may be reached through a tunnel.
_HOSTS: Final = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
_HEADERS: Final = {
    "cache-control": "no-store",  # what is forgotten is not kept by a browser either
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Choice(msgspec.Struct, frozen=True):
    """What a person decided."""

    id: Id
    label: Actual


class Retraction(msgspec.Struct, frozen=True):
    """A decision to be taken back: the person's latest about this sample."""

    id: Id


class Queue(msgspec.Struct, frozen=True):
    """What is to be labelled, first things first; ``said`` is what each person said, where that is to be settled.

    ``done`` counts what this person decided, and ``latest`` has the last of it, which may be taken back.
    """

    who: str
    settle: bool
    done: int
    disputed: int
    samples: list[dict[str, Any]]
    latest: list[dict[str, Any]]


class Labelling:
    """One person's labelling of the samples at one address."""

    def __init__(self, samples: Samples, ledger: Path, who: str, evidence: Evidence, *, settle: bool) -> None:
        """Take all of it; ``settle``: decide where people disagree, rather than label."""
        self.samples = samples
        self.evidence = evidence
        self._ledger = ledger
        self._who = who
        self._decision: Literal["label", "settle"] = "settle" if settle else "label"

    def queue(self) -> Queue:
        """What is to be labelled now: what nobody labelled comes before what others did."""
        found = self.samples.listed()
        lines = decisions.read(self._ledger)
        standing = decisions.standing(lines)
        about = {id_: standing.get(id_, Standing()) for id_ in found}
        place = {line.id: number for number, line in enumerate(lines) if line.who == self._who}
        own = sorted((line for each in about.values() for line in self._own(each)[-1:]), key=lambda own: place[own.id])
        disputed = [id_ for id_ in found if about[id_].disputed]
        unsettled = [id_ for id_ in found if not about[id_].settled and self._who not in about[id_].labels]
        settle = self._decision == "settle"
        order = most_informative(found, disputed if settle else unsettled)
        if not settle:
            order.sort(key=lambda id_: bool(about[id_].labels))

        def shown(id_: str) -> dict[str, Any]:
            return {"id": id_, "said": about[id_].labels} if settle else {"id": id_}

        return Queue(
            who=self._who,
            settle=settle,
            done=len(own),
            latest=[shown(line.id) | {"label": line.label} for line in own[-LATEST:]],
            disputed=len(disputed),
            samples=[shown(id_) for id_ in order],
        )

    def decide(self, choice: Choice, sample: Sample) -> None:
        """Write a decision down."""
        decision = Decision(choice.id, choice.label, self._decision, self._who, _now(), sample.prediction.model)
        decisions.append(self._ledger, [decision])

    def undo(self, id_: str) -> bool:
        """Take this person's decision about a sample back, however often it was made; returns whether there was one."""
        own = self._own(decisions.standing(decisions.read(self._ledger)).get(id_, Standing()))
        if own:
            now = _now()
            decisions.append(self._ledger, [msgspec.structs.replace(line, decision="undo", when=now) for line in own])
        return bool(own)

    def _own(self, about: Standing) -> list[Decision]:
        """This person's lines, from the last one back as far as they are decisions of this kind."""
        own = (line for line in reversed(about.lines) if line.who == self._who)
        return list(itertools.takewhile(lambda line: line.decision == self._decision, own))[::-1]


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class OwnPage:
    """ASGI middleware that answers this page alone, and sends the security headers.

    A web page elsewhere may send requests here, or have its own name lead here (DNS rebinding).
    """

    def __init__(self, app: ASGIApp) -> None:
        """Take what answers."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host = headers.get("host", "")
        app = self._app
        if not _HOSTS.fullmatch(host):
            app = _problem(421, "this page answers to localhost only")
        elif (
            headers.get("origin", f"http://{host}") != f"http://{host}"
            or headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        ):  # fmt: skip
            app = _problem(403, "other pages may not use this one")
        await app(scope, receive, secured)


def application(labelling: Labelling) -> Starlette:
    """The page and what it asks for. Handlers that are no coroutines run in threads: they read files."""

    def page(_: Request) -> Response:
        return FileResponse(WEB / "index.html")

    def asset(request: Request) -> Response:
        name = request.path_params["name"]
        return FileResponse(WEB / name) if name in ASSETS else _problem(404, "no such file")

    def queue(_: Request) -> Response:
        return _json(labelling.queue())

    def picture(request: Request) -> Response:
        data = labelling.samples.picture(request.path_params["id"])
        return Response(data, media_type="image/png") if data else _gone()

    def answer(request: Request) -> Response:
        sample = labelling.samples.sample(request.path_params["id"])
        return _json(sample) if sample else _gone()

    def evidence(request: Request) -> Response:
        data = labelling.samples.picture(request.path_params["id"])
        return _json(labelling.evidence.strength(pixels(data))) if data else _gone()

    def decide(choice: Choice) -> Response:
        sample = labelling.samples.sample(choice.id)
        if sample is None:
            return _gone()
        labelling.decide(choice, sample)
        return Response(status_code=204)

    def undo(what: Retraction) -> Response:
        return Response(status_code=204) if labelling.undo(what.id) else _problem(409, "nothing to take back")

    return Starlette(
        routes=[
            Route("/", page),
            Route("/assets/{name}", asset),
            Route("/queue", queue),
            Route("/samples/{id}/picture", picture),
            Route("/samples/{id}/answer", answer),
            Route("/samples/{id}/evidence", evidence),
            Route("/decisions", _taking(Choice, decide), methods=["POST"]),
            Route("/undo", _taking(Retraction, undo), methods=["POST"]),
        ],
        middleware=[Middleware(OwnPage)],
        exception_handlers={OSError: _failed, StageError: _failed, RefusedImageError: _failed},
    )


def serve(labelling: Labelling, port: int, started: Callable[[str], object]) -> None:
    """Serve the page until SIGINT or SIGTERM.

    Args:
        labelling: what it is about.
        port: to listen on, on this machine only; 0 for any free one.
        started: called with the page's address.

    Raises:
        StageError: the port is taken.
    """
    try:
        listening = socket.create_server((HOST, port))
    except OSError as error:
        raise StageError(f"port {port}: {error.strerror}; --port 0 takes a free one") from error
    config = uvicorn.Config(application(labelling), lifespan="off", log_level="warning", proxy_headers=False)
    with listening:
        started(f"http://{HOST}:{listening.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[listening])


def _taking(kind: type[T], act: Callable[[T], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def take(request: Request) -> Response:
        try:
            body = msgspec.json.decode(await request.body(), type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return _problem(400, str(error))
        return await run_in_threadpool(act, body)

    return take


def _json(document: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


def _problem(status: int, detail: str) -> Response:
    return _json({"detail": detail}, status)


def _gone() -> Response:
    return _problem(410, "this sample was forgotten, or is gone")


async def _failed(_: Request, error: Exception) -> Response:
    return _problem(500, (error.strerror if isinstance(error, OSError) else None) or str(error))
