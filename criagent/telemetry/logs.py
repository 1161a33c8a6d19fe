# SPDX-License-Identifier: Apache-2.0
"""Logging: JSON lines on stderr, or readable ones when stderr is a terminal.

An event is a constant name and comes first; its facts are keys. Credentials never appear: their
types show nothing in their repr, and tracebacks carry no local variables. Facts that images,
registries or plug-ins control are printable and cut, and no line is longer than journald accepts
whole (LineMax=, 48 KiB). Under systemd each line begins with its priority (sd-daemon(3)), so that
`journalctl -p warning` finds warnings and errors.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

import structlog

from criagent.base import memory
from criagent.base.text import bounded

CALL = "call"  # the event of a call's end
# Lines since the start by level, without those of calls: calls have metrics of their own.
LINES: Counter[str] = Counter()

_VALUE = 2048  # characters of one fact, as JSON
_LINE = 16384  # of all facts together
_ITEMS = 32
_FIRST_FRAMES, _LAST_FRAMES, _FRAME = 25, 35, 512  # lines of a traceback, characters of each
_FIRST = ("event", "level", "timestamp", "rpc", "trace_id", "pod", "container", "image")
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


_LEVELS = {name: getattr(logging, name.upper()) for name in ("debug", "info", "warning", "error")}


class _Threshold:
    """The level from which on lines are written; loggers are cached, so it is looked up here."""

    def __init__(self) -> None:
        self.command_line = "info"
        self.number = logging.INFO

    def __call__(
        self, _logger: object, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        if _LEVELS.get(method, logging.CRITICAL) < self.number:
            raise structlog.DropEvent
        return event


_threshold = _Threshold()


def set_level(level: str) -> None:
    """Log from `level` on from now on; "" = as the command line said."""
    _threshold.number = _LEVELS[level or _threshold.command_line]


def writes(level: str) -> bool:
    """Whether lines of `level` are written."""
    return bool(_LEVELS[level] >= _threshold.number)


def setup(level: str) -> None:
    """Log from `level` on; libraries from warning on."""
    _threshold.command_line = level
    set_level(level)
    terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        _counted,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[structlog.typing.Processor]
    if terminal:
        # not the pretty tracebacks: those print local variables, so credentials too
        last = [_bounded, structlog.dev.ConsoleRenderer(exception_formatter=_plain_traceback)]
    else:
        render = _render_prefixed if to_journal() else _render
        last = [structlog.processors.format_exc_info, _bounded, _ordered, render]
    structlog.configure(
        processors=[_threshold, *shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def take_uncaught() -> None:
    """Log what nobody catches, in any thread or destructor, like everything else.

    The interpreter would print a traceback of many lines, to the journal as lines of level info.
    For want of memory the process ends: `base/memory.py`. Libraries catch it too (an event loop in
    its callbacks, an executor in its threads) and only log it.
    """
    log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

    def write(where: str, error: BaseException | None) -> None:
        memory.end_without(error, where)
        try:
            log.error("uncaught_exception", where=where, exc_info=error)
        except MemoryError as failure:
            memory.end_without(failure, where)

    def of_process(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, traceback)
        else:
            write("the main thread", error)

    def of_thread(args: threading.ExceptHookArgs) -> None:
        name = "a thread" if args.thread is None else f"the thread {args.thread.name}"
        write(name, args.exc_value)

    def of_destructor(args: sys.UnraisableHookArgs) -> None:
        memory.end_without(args.exc_value, "a destructor or a callback of a library")
        write(repr(args.object), args.exc_value)

    def of_library(record: logging.LogRecord) -> bool:
        if record.exc_info:
            memory.end_without(record.exc_info[1], record.name)
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(of_library)
    sys.excepthook, threading.excepthook = of_process, of_thread
    sys.unraisablehook = of_destructor


def to_journal() -> bool:
    """Whether stderr is the journal's: $JOURNAL_STREAM, which children inherit, names its file."""
    try:
        facts = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def _counted(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if event.get("event") != CALL:
        LINES[event.get("level", "")] += 1
    return event


def _bounded(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    left = _LINE
    for key, value in event.items():
        if key == "exception":
            event[key] = _traceback(str(value))
        elif key != "exc_info":
            event[key], used = _shown(value, min(_VALUE, left))
            left = max(left - used, 64)
    return event


def _shown(value: object, limit: int) -> tuple[object, int]:
    """`value` with its texts cut to about `limit` characters in total, and the number used."""
    if isinstance(value, str):
        if len(value) <= limit and value.isascii() and value.isprintable():
            return value, len(value)
        text = bounded(value, limit, _json_size)
        return text, _json_size(text)
    if value is None or isinstance(value, bool | int | float):
        return value, 8
    if isinstance(value, Mapping):
        keys, size = _items([str(key) for key in value], limit // 2)
        items, more = _items(list(value.values()), limit // 2)
        return dict(zip(keys, items, strict=True)), size + more
    if isinstance(value, list | tuple | set | frozenset):
        return _items(list(value), limit)
    return _shown(repr(value), limit)


def _items(values: list[Any], limit: int) -> tuple[list[Any], int]:
    """The first of `values`; nested ones are shown as a text."""
    shown: list[Any] = []
    used = 0
    for value in values[:_ITEMS]:
        plain = value is None or isinstance(value, str | bool | int | float)
        item, size = _shown(value if plain else repr(value), max(limit - used, 64))
        shown.append(item)
        used += size
    return shown, used


def _traceback(text: str) -> str:
    lines = text.splitlines()
    if len(lines) > _FIRST_FRAMES + _LAST_FRAMES:
        lines = [*lines[:_FIRST_FRAMES], "...", *lines[-_LAST_FRAMES:]]
    return "\n".join(bounded(line, _FRAME, _json_size) for line in lines)


def _plain_traceback(out: TextIO, error: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, error)
    out.write("\n" + _traceback(text.getvalue().strip("\n")))


def _json_size(text: str) -> int:
    return len(json.dumps(text))


def _ordered(
    _logger: object, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    first = {key: event.pop(key) for key in _FIRST if key in event}
    return {**first, **event}


def _render(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    return json.dumps(event, default=repr)


def _render_prefixed(_logger: object, _method: str, event: structlog.typing.EventDict) -> str:
    return f"<{_PRIORITIES.get(event.get('level', ''), 6)}>{json.dumps(event, default=repr)}"
