"""The settings of the service, each with its type, range and description; read from ``CATSDOGS_*``."""

import difflib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, inspect

from serving import extras
from shared.addresses import without_secrets
from shared.spec import MAX_PIXELS
from shared.stores import SCHEMES

PREFIX: Final = "CATSDOGS_"
SHIPPED_MODEL: Final = Path(__file__).parent / "models" / "cats-dogs.fp32.onnx"
# The same network in int8, served if the file exists; `serving.model.session` falls back to the other.
SHIPPED_INT8: Final = SHIPPED_MODEL.with_name("cats-dogs.int8.onnx")
MEGABYTE: Final = 1_000_000
# More is a mistake, and beyond 64 bits nothing can be limited.
TERABYTE: Final = 10**12
# A longer time to wait is a mistake, of units for one.
HOUR: Final = 3600
DAY: Final = 24 * HOUR
# Variables that Compose, deployment, tests and other commands read.
OTHERS: Final = frozenset(
    ("ALERTMANAGER", "CANDIDATE", "CANDIDATE_PORT", "IMAGE", "IMAGE_BEFORE", "IMAGE_REPORT", "KEY", "PROMETHEUS")
)


class SettingsError(ValueError):
    """A setting with an invalid value."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings; a field ``max_pixels`` is ``CATSDOGS_MAX_PIXELS`` in the environment."""

    model: Annotated[str, Meta(description="The model file; empty for the one that ships.")] = ""
    challenger: Annotated[
        str,
        Meta(description="Another model file, which answers the same pictures in idle time, unseen; empty for none."),
    ] = ""
    host: Annotated[
        str,
        Meta(
            min_length=1,  # no address means all of them
            description="The address to listen on; 0.0.0.0 for all.",
            extra={"allowed": "addresses and names of this machine, and 0.0.0.0 for all"},
        ),
    ] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="The port to listen on; 0 for any free one.")] = 8000
    lanes: Annotated[
        int,
        Meta(
            ge=0, description="Lanes, a worker process each; 0 for one per usable core (affinity and container quota)."
        ),
    ] = 0
    max_queue: Annotated[
        int, Meta(ge=1, description="Most pictures that wait for a lane; further requests are refused.")
    ] = 256
    max_body_bytes: Annotated[int, Meta(ge=1, le=TERABYTE, description="Largest request body, except for a batch.")] = (
        20 * MEGABYTE
    )
    max_batch_bytes: Annotated[int, Meta(ge=1, le=TERABYTE, description="Largest request body of a batch.")] = (
        64 * MEGABYTE
    )
    max_pixels: Annotated[int, Meta(ge=1, le=TERABYTE, description="Largest picture, width times height.")] = MAX_PIXELS
    max_decode_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=TERABYTE,
            description="Most memory that decoding a picture may take; 0 for what a container's limit leaves.",
        ),
    ] = 0
    max_cpu_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=HOUR,
            description="Processor seconds that a picture may take, beside 0.1 for each megapixel up to 50.",
        ),
    ] = 0.5
    max_memory_bytes: Annotated[
        int, Meta(ge=1, le=TERABYTE, description="Most bytes of request bodies in memory; further senders wait.")
    ] = 128 * MEGABYTE
    deadline_seconds: Annotated[
        float, Meta(gt=0, le=HOUR, description="Longest time from a picture's arrival in the queue to its answer.")
    ] = 10.0
    body_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=HOUR,
            description="Longest time for a client to send a request's head; "
            "a body may fall this far behind 32 kB a second.",
        ),
    ] = 15.0
    drain_delay_seconds: Annotated[
        float,
        Meta(
            ge=0, le=HOUR, description="How long to take requests after SIGTERM although not ready, for load balancers."
        ),
    ] = 0.0
    max_connections: Annotated[
        int, Meta(ge=1, description="Most connections at a time; the one idle longest makes room for a new one.")
    ] = 1000
    api_keys: Annotated[
        str,
        Meta(
            # Empty is refused: it is more often a secret that is missing than a service meant for everybody.
            pattern=r"^([0-9a-fA-F]{64}([,\s]+|$))+$",
            description="SHA-256 digests of the API keys, from `catsdogs key`; unset for no keys, empty is refused.",
            extra={
                "allowed": "SHA-256 digests in hex, with commas or spaces between (`catsdogs key` makes one); "
                "unset it for a service without keys"
            },
        ),
    ] = ""
    id_key: Annotated[
        str,
        Meta(
            min_length=16,
            extra={"allowed": "secrets of at least 16 characters; unset it for a random one"},
            description="Secret that signs prediction ids: replicas that share it take feedback on each other's "
            "answers, and across restarts. Unset for a random one; at least 16 characters.",
        ),
    ] = ""
    origins: Annotated[
        str,
        Meta(
            pattern=r"^(\*|((?i:https?)://([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?([,\s]+|$))*)$",
            description="Origins whose web pages may use the service, with commas between; `*` for all.",
            extra={
                "allowed": "origins such as https://app.example or http://localhost:3000, without a path and with "
                "commas between, or * alone for every page"
            },
        ),
    ] = ""
    root_path: Annotated[
        str,
        Meta(
            pattern=r"^((/[A-Za-z0-9_.~-]+)+/?)?$",
            description="Path under which a proxy serves the service, if it leaves that in the requests, as /cats.",
            extra={"allowed": "paths such as /cats"},
        ),
    ] = ""
    metrics_port: Annotated[
        int, Meta(ge=0, le=65535, description="A separate port for /metrics; 0 for the service's own.")
    ] = 0
    journal: Annotated[
        str, Meta(description="Folder of the journal of predictions and feedback; empty to write nothing to disk.")
    ] = ""
    journal_file_bytes: Annotated[int, Meta(ge=1, description="Size at which the journal starts a new file.")] = (
        64 * MEGABYTE
    )
    journal_files: Annotated[int, Meta(ge=0, description="Files of the journal to keep, the newest; 0 for all.")] = 0
    samples: Annotated[
        str, Meta(description="Folder or `s3://BUCKET/KEY` of pictures kept to be learned from; empty to keep none.")
    ] = ""
    sample: Annotated[
        str,
        Meta(
            pattern=r"^((unsure|disputed|disagreed|random:(1|0?\.\d+))(,(?!$)|$))+$",
            extra={
                "allowed": "unsure, disputed, disagreed and random:SHARE, such as random:0.01, or some, with commas "
                "between"
            },
            description="Which are kept: `unsure` ones, `disputed` by feedback within ten minutes, those of which the "
            "challenger `disagreed`, a `random:SHARE`.",
        ),
    ] = "unsure,disputed,disagreed,random:0.01"
    samples_count: Annotated[int, Meta(ge=1, description="Most samples to keep, the newest.")] = 10_000
    samples_bytes: Annotated[int, Meta(ge=1, description="Most bytes of samples.")] = 2_000 * MEGABYTE
    samples_days: Annotated[float, Meta(gt=0, le=36_500, description="Days after which a sample is deleted.")] = 30.0
    watch_seconds: Annotated[
        float,
        Meta(ge=0, le=DAY, description="How often to look for a new model file and load it; 0 to load only on SIGHUP."),
    ] = 0.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe level that is logged.")
    ] = "info"

    @property
    def model_path(self) -> Path:
        """The model file to serve."""
        if self.model:
            return Path(self.model).expanduser()
        return SHIPPED_INT8 if SHIPPED_INT8.is_file() else SHIPPED_MODEL


def from_environment(environment: Mapping[str, str] = os.environ, **overrides: object) -> Settings:
    """Read the settings; ``overrides`` that are not None win over the environment.

    Raises:
        SettingsError: a value has the wrong type or is out of range; the message says what is allowed.
    """
    values: dict[str, object] = {
        name: environment[PREFIX + name.upper()]
        for name in Settings.__struct_fields__
        if PREFIX + name.upper() in environment
    }
    values |= {name: value for name, value in overrides.items() if value is not None}
    if "log_level" in values:
        values["log_level"] = str(values["log_level"]).lower()
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        # msgspec says "Expected `int` … - at `$.port`"; people know the setting by the variable's name.
        name = str(error).rpartition("`$.")[2].rstrip("`")
        # Who sets a key in place of its digest should not find it in the log.
        said = "invalid" if name in ("api_keys", "id_key") else repr(without_secrets(str(values[name])))
        raise SettingsError(f"{PREFIX}{name.upper()} is {said}; allowed are {_allowed(name)}") from error
    if settings.samples.startswith(SCHEMES) and find_spec("obstore") is None:
        raise SettingsError(f"{PREFIX}SAMPLES: a bucket needs obstore: {extras.hint('samples')}")
    return settings


def unknown(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Say of each variable ``CATSDOGS_*`` that nothing reads which setting's name is nearest."""
    known = [name.upper() for name in Settings.__struct_fields__]
    said = []
    for variable in sorted(environment):
        name = variable[len(PREFIX) :]
        if variable.upper().startswith(PREFIX) and variable not in {PREFIX + other for other in (*known, *OTHERS)}:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.5)
            meant = f"; did you mean {PREFIX}{nearest[0]}?" if nearest else ""
            said.append(f"{variable} is no setting and has no effect{meant}")
    return said


def _allowed(name: str) -> str:
    kind = next(field.type for field in inspect.type_info(Settings).fields if field.name == name)  # type: ignore[attr-defined]
    assert isinstance(kind, inspect.Metadata)
    if kind.extra:
        return str(kind.extra["allowed"])
    if isinstance(kind.type, inspect.LiteralType):
        return ", ".join(map(str, kind.type.values))
    assert isinstance(kind.type, inspect.IntType | inspect.FloatType)
    what = "whole numbers" if isinstance(kind.type, inspect.IntType) else "numbers"
    least = f"from {kind.type.ge}" if kind.type.ge is not None else f"above {kind.type.gt}"
    return f"{what} {least}" + (f" up to {kind.type.le}" if kind.type.le is not None else "")
