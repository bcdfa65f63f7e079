"""Logs: structlog, as text (logfmt), JSON or logstash, on standard error."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, BinaryIO, Final, Literal, cast

import orjson
import structlog
from structlog.typing import EventDict, Processor

Formatter = Literal["text", "json", "logstash"]

LEVELS: Final = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}


class _StandardError:
    """Standard error, as it is now. A log that cannot be written must not fail a pull."""

    def write(self, line: bytes) -> int:
        with suppress(OSError, ValueError):
            sys.stderr.buffer.write(line)
        return len(line)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            sys.stderr.buffer.flush()


def configure(level: str, formatter: Formatter, fields: Mapping[str, str]) -> None:
    """Set up all logging of this process; may be called again for another level."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, *_processors(formatter, fields)],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(cast("BinaryIO", _StandardError())),
        cache_logger_on_first_use=False,
    )
    # What libraries say goes the same way, but for what asyncio says of clients that left.
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)


def access_logger(formatter: Formatter, fields: Mapping[str, str]) -> Any:
    """Return the logger of access lines, which no level silences."""
    return structlog.wrap_logger(
        structlog.BytesLogger(cast("BinaryIO", _StandardError())),
        processors=[_info, *_processors(formatter, fields)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    ).bind()


def _info(_: Any, __: str, event: EventDict) -> EventDict:
    event["level"] = "info"
    return event


def _processors(formatter: Formatter, fields: Mapping[str, str]) -> list[Processor]:
    def add_fields(_: Any, __: str, event: EventDict) -> EventDict:
        return {**fields, **event}  # what a line says of itself is not to be overridden

    stamp = "@timestamp" if formatter == "logstash" else "time"
    common: list[Processor] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True, key=stamp),
        structlog.processors.format_exc_info,
    ]
    if fields:
        common.append(add_fields)
    if formatter == "text":
        return [*common, _text]
    if formatter == "logstash":
        common.append(_logstash)
    common.append(structlog.processors.JSONRenderer(serializer=_json))
    return common


def _text(_: Any, __: str, event: EventDict) -> bytes:
    """Render as logfmt; structlog's own renderer took a tenth of a warm request's time."""
    stamp, level, name = event.pop("time"), event.pop("level"), event.pop("event")
    pairs = "".join([f" {_key(key)}={_quoted(value)}" for key, value in event.items()])
    return f"time={stamp} level={level} event={_quoted(name)}{pairs}".encode()


def _quoted(value: Any) -> str:
    text = str(value)
    # What a client chose may hold anything; one line stays one line.
    return text if _PLAIN(text) else _json(text).decode()


def _key(key: str) -> str:
    return key if key.isidentifier() else _NOT_IN_A_KEY.sub("_", key)


_PLAIN: Final = re.compile(r"[!#-<>-\[\]-~]*").fullmatch
_NOT_IN_A_KEY: Final = re.compile(r"[^A-Za-z0-9_.-]")


def _json(value: Any, **_: Any) -> bytes:
    try:
        return orjson.dumps(value, default=str)
    except TypeError:  # a lone surrogate, which JSON can only hold escaped
        return json.dumps(value, default=str).encode()


def _logstash(_: Any, __: str, event: EventDict) -> EventDict:
    event["@version"] = "1"
    event["message"] = event.pop("event", "")
    return event


class _Bridge(logging.Handler):
    """Passes the standard library's records on."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(max(record.levelno, logging.DEBUG), record.getMessage(), logger=record.name)
