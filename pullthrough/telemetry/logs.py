"""Logs: structlog, as text (logfmt), JSON or logstash, on standard error."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal

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


def configure(level: str, formatter: Formatter, fields: Mapping[str, str]) -> None:
    """Set up all logging of this process; may be called again for another level."""
    structlog.configure(
        processors=[structlog.processors.add_log_level, *_processors(formatter, fields)],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=False,
    )
    # What libraries say goes the same way, but for what asyncio says of clients that left.
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)


def access_logger(formatter: Formatter, fields: Mapping[str, str]) -> Any:
    """Return the logger of access lines, which no level silences."""
    *common, render = _processors(formatter, fields)
    if formatter == "text":
        # One line a request: the general renderer took a tenth of a warm request's time.
        common, render = common[:-1], _access_text
    return structlog.wrap_logger(
        structlog.BytesLogger(sys.stderr.buffer),
        processors=[_info, *common, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    ).bind()


def _access_text(_: Any, __: str, event: EventDict) -> bytes:
    stamp, level, name = event.pop("time"), event.pop("level"), event.pop("event")
    pairs = " ".join([f"{key}={_quoted(value)}" for key, value in event.items()])
    return f"time={stamp} level={level} event={name} {pairs}".encode(errors="backslashreplace")


def _quoted(value: Any) -> str:
    text = str(value)
    # What a client chose may hold anything; one line stays one line.
    return text if _PLAIN(text) else orjson.dumps(text).decode()


_PLAIN: Final = re.compile(r"[!#-<>-\[\]-~]*").fullmatch


def _info(_: Any, __: str, event: EventDict) -> EventDict:
    event["level"] = "info"
    return event


def _processors(formatter: Formatter, fields: Mapping[str, str]) -> list[Processor]:
    def add_fields(_: Any, __: str, event: EventDict) -> EventDict:
        event.update(fields)
        return event

    stamp = "@timestamp" if formatter == "logstash" else "time"
    common: list[Processor] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True, key=stamp),
        structlog.processors.format_exc_info,
    ]
    if fields:
        common.append(add_fields)
    if formatter == "text":
        order = ["time", "level", "event"]
        render = structlog.processors.LogfmtRenderer(key_order=order, drop_missing=True)
        return [*common, render, _encode]
    if formatter == "logstash":
        common.append(_logstash)
    common.append(structlog.processors.JSONRenderer(serializer=orjson.dumps))
    return common


def _encode(_: Any, __: str, line: Any) -> bytes:
    return str(line).encode(errors="backslashreplace")


def _logstash(_: Any, __: str, event: EventDict) -> EventDict:
    event["@version"] = "1"
    event["message"] = event.pop("event", "")
    return event


class _Bridge(logging.Handler):
    """Passes the standard library's records on."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(max(record.levelno, logging.DEBUG), record.getMessage(), logger=record.name)
