"""Log lines: one line each, whatever is in them, in each of distribution's formats."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from pullthrough.telemetry import logs
from pullthrough.telemetry.logs import Formatter

FORMATTERS: tuple[Formatter, ...] = ("text", "json", "logstash")
ACCESS = {
    "request_id": "ab-1",
    "address": "10.0.0.1",
    "user": "node",
    "method": "GET",
    "path": "/v2/project/app/manifests/v1",
    "status": 200,
    "bytes": 7,
    "duration": 0.25,
    "detail": "",
}
ODD = [
    'two\nlines "quoted" = \\ odd',
    "\r\nlevel=error event=forged",
    '" level=error event="forged',
    "ümlaut 图",
    "\x1b[31mred\x00",
    "",
    " ",
    "a=b",
    "back\\slash",
    "\udcff not UTF-8",
]

Read = Callable[[], list[bytes]]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave logging as it was: configure takes over the root logger."""
    root, before = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    asyncio_level = logging.getLogger("asyncio").level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(asyncio_level)
    structlog.configure(**before)


@pytest.fixture(name="read")
def _read(capsysbinary: pytest.CaptureFixture[bytes]) -> Read:
    """Return what was logged since the last time, in lines."""

    def read() -> list[bytes]:
        out, err = capsysbinary.readouterr()
        assert out == b""
        assert err == b"" or err.endswith(b"\n")
        return err.split(b"\n")[:-1]

    return read


def fields_of(line: bytes) -> dict[str, str]:
    """Return the pairs of a logfmt line, values unquoted as logfmt readers do."""
    pairs = re.findall(r'([^\s=]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)', line.decode())
    assert " ".join(f"{key}={value}" for key, value in pairs) == line.decode().strip()
    return {key: json.loads(value) if value[:1] == '"' else value for key, value in pairs}


# -- lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("access", [True, False])
def test_one_line_stays_one_line(
    read: Read, formatter: Formatter, value: str, *, access: bool
) -> None:
    """What a client chose cannot end a line, begin another, or be taken for another field."""
    logs.configure("info", formatter, {})
    log = logs.access_logger(formatter, {}) if access else structlog.get_logger()
    log.info("request", path=value, status=404)
    (line,) = read()
    assert b"\n" not in line
    assert b"\r" not in line
    assert line.decode()  # UTF-8
    if formatter == "text":
        assert len(re.findall(rb"(?:^| )level=", line)) <= 1 + (b'"' in line)
        assert re.search(rb"(?:^| )status=404(?: |$)", line)
    else:
        document = json.loads(line)
        assert document["status"] == 404
        assert "\udcff" in value or document["path"] == value


def test_text_has_the_time_the_level_and_the_event_first(read: Read) -> None:
    """What a person looks for stands at a line's beginning, in both kinds of lines."""
    logs.configure("info", "text", {})
    structlog.get_logger().warning("something happened", what="x y")
    logs.access_logger("text", {}).info("request", **ACCESS)
    said, accessed = read()
    form = rb"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z level=%s event=%s "
    assert re.match(form % (b"warning", b'"something happened"'), said)
    assert re.match(form % (b"info", b"request"), accessed)


@pytest.mark.parametrize("value", [value for value in ODD if "\udcff" not in value])
def test_quoting_can_be_read_back(read: Read, value: str) -> None:
    """A reader of logfmt gets from an access line the very path that the client sent."""
    logs.access_logger("text", {}).info("request", **{**ACCESS, "path": value})
    (line,) = read()
    assert fields_of(line)["path"] == value
    assert fields_of(line)["status"] == "200"


def test_plain_values_are_not_quoted(read: Read) -> None:
    """An ordinary line has no quotes in it."""
    logs.access_logger("text", {}).info("request", **ACCESS)
    (line,) = read()
    assert b'"' not in line
    assert (
        fields_of(line).items()
        >= {
            "path": "/v2/project/app/manifests/v1",
            "bytes": "7",
            "duration": "0.25",
            "detail": "",
        }.items()
    )


def test_json(read: Read) -> None:
    """One object a line, with numbers as numbers."""
    logs.configure("info", "json", {})
    structlog.get_logger().error("it broke", number=5, nothing=None)
    logs.access_logger("json", {}).info("request", **ACCESS)
    said, accessed = map(json.loads, read())
    assert said.pop("time").endswith("Z")
    assert said == {"event": "it broke", "level": "error", "number": 5, "nothing": None}
    assert accessed.pop("time").endswith("Z")
    assert accessed == {"event": "request", "level": "info", **ACCESS}


def test_logstash(read: Read) -> None:
    """Logstash has names of its own for time and message, as distribution writes them."""
    logs.configure("info", "logstash", {})
    structlog.get_logger().error("it broke")
    logs.access_logger("logstash", {}).info("request", **ACCESS)
    for line, message in zip(map(json.loads, read()), ("it broke", "request"), strict=True):
        assert line["@version"] == "1"
        assert line["@timestamp"].endswith("Z")
        assert line["message"] == message
        assert "event" not in line
        assert "time" not in line


@pytest.mark.parametrize("formatter", FORMATTERS)
@pytest.mark.parametrize(
    "fields",
    [
        {"service": "registry", "environment": "a b"},
        {"my key": "value"},  # what distribution takes
        {"": "empty"},
        {"a=b": "c"},
        {"schlüssel": "wert"},
        {"two\nlines": "x"},
    ],
)
def test_static_fields_are_on_every_line(
    read: Read, formatter: Formatter, fields: dict[str, str]
) -> None:
    """log.fields, of any name that distribution takes, is on ordinary and on access lines."""
    logs.configure("info", formatter, fields)
    structlog.get_logger().info("said")
    logs.access_logger(formatter, fields).info("request", **ACCESS)
    lines = read()
    assert len(lines) == 2
    for line in lines:
        if formatter != "text":
            assert json.loads(line).items() >= fields.items()
        else:
            for value in fields.values():
                assert value.encode() in line


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_exception_is_one_line(read: Read, formatter: Formatter) -> None:
    """A traceback is a field of its line, not thirty lines that belong to nothing."""
    logs.configure("info", formatter, {})
    error = ValueError("what happened")
    structlog.get_logger().error("request failed", request_id="ab-1", exc_info=error)
    (line,) = read()
    assert b"ValueError: what happened" in line
    assert b"ab-1" in line


# -- levels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warn", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_levels(read: Read, level: str, expected: list[str]) -> None:
    """Each of distribution's levels lets its own and the graver ones through."""
    logs.configure(level, "json", {})
    log = structlog.get_logger()
    for each in ("debug", "info", "warning", "error"):
        getattr(log, each)(each)
    assert [json.loads(line)["level"] for line in read()] == expected


def test_level_can_be_changed(read: Read) -> None:
    """A logger that a module took at its import follows the level that SIGHUP brings."""
    log = structlog.get_logger()
    logs.configure("error", "json", {})
    log.info("not this")
    logs.configure("info", "json", {})
    log.info("this")
    logs.configure("error", "json", {})
    log.info("nor this")
    assert [json.loads(line)["event"] for line in read()] == ["this"]


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_access_lines_are_written_at_every_level(read: Read, formatter: Formatter) -> None:
    """Level error silences what the service says, not the record of who pulled what."""
    logs.configure("error", formatter, {})
    access = logs.access_logger(formatter, {})
    structlog.get_logger().info("not this")
    access.info("request", **ACCESS)
    (line,) = read()
    assert b"/v2/project/app/manifests/v1" in line


def test_what_libraries_say_goes_the_same_way(read: Read) -> None:
    """A library's warning is a line of ours; its chatter, and asyncio's of clients, is not."""
    logs.configure("info", "json", {"service": "registry"})
    logging.getLogger("aiohttp.client").warning("careful: %s", "x\ny")
    logging.getLogger("aiohttp.client").info("chatter")
    logging.getLogger("asyncio").warning("socket.send() raised exception.")
    (line,) = map(json.loads, read())
    assert line["event"] == "careful: x\ny"
    assert (line["level"], line["logger"], line["service"]) == (
        "warning",
        "aiohttp.client",
        "registry",
    )


def test_configured_twice_logs_once(read: Read) -> None:
    """A reload does not double what libraries say."""
    for _ in range(3):
        logs.configure("info", "json", {})
    logging.getLogger("some.library").error("once")
    assert len(read()) == 1


@pytest.mark.parametrize("formatter", FORMATTERS)
def test_values_that_are_no_text(read: Read, formatter: Formatter) -> None:
    """What a caller passes by mistake is written somehow: a log call never raises."""
    logs.configure("info", formatter, {})
    values: dict[str, Any] = {"path": object(), "raw": b"\xff", "set": {1, 2}}
    for key, value in values.items():
        structlog.get_logger().info("odd", **{key: value})
    assert len(read()) == len(values)
