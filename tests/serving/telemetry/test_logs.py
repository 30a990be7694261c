import io
import json
import logging
import re
import threading

import pytest

from serving.telemetry import logs, writer


class Slow(io.StringIO):
    """A pipe that nobody reads until ``gate`` opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.reached = threading.Event()

    def write(self, text: str) -> int:
        self.reached.set()
        self.gate.wait(20)
        return super().write(text)


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("catsdogs", logging.INFO, "f", 1, message, (), None)


def test_lines_that_nobody_reads_are_dropped_and_counted_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_LINES", 10)
    stream = Slow()
    handler = logs.Handler(stream)
    handler.emit(record("first"))
    assert stream.reached.wait(20)
    for number in range(25):
        handler.emit(record(f"line {number}"))
    stream.gate.set()
    handler.close()
    said = [json.loads(line)["message"] for line in stream.getvalue().splitlines()]
    assert said == ["first", *(f"line {number}" for number in range(10)), "15 lines lost"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_lines_are_for_people() -> None:
    stream = Terminal()
    handler = logs.Handler(stream)
    logger = logging.Logger("catsdogs")
    logger.addHandler(handler)
    logger.info("stopped")
    logger.error("the model is refused", extra={"fields": {"reason": "m.onnx: not a model", "serving": None}})
    logger.info("ready", extra={"fields": {"model": "1.2", "model_file": "m.onnx"}})
    try:
        raise ValueError("odd")
    except ValueError:
        logger.exception("a request failed", extra={"fields": {"request_id": "17"}})
    other = logging.Logger("uvicorn.error")
    other.addHandler(handler)
    other.info("Application startup complete.")
    other.warning("Invalid HTTP request received.")
    handler.close()
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in (*lines[:4], lines[-1]))
    assert [line[9:] for line in lines[:4]] == [
        "stopped",
        "error: the model is refused: m.onnx: not a model",
        "ready: model 1.2, model file m.onnx",
        "error: a request failed: request id 17",
    ]
    assert lines[-2:] == ["ValueError: odd", f"{lines[-1][:9]}warning: Invalid HTTP request received."]


def test_a_record_that_cannot_be_formatted_ends_no_logs() -> None:
    stream = io.StringIO()
    handler = logs.Handler(stream)
    handler.emit(logging.LogRecord("catsdogs", logging.INFO, "f", 1, "%d pictures", ("many",), None))
    handler.emit(record("and on"))
    handler.close()
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["message"], first["reason"]) == ("a record could not be formatted", "TypeError")
    assert second["message"] == "and on"
