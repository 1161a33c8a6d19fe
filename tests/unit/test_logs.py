"""Log lines: one JSON object each, whoever logs, and never a credential."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
import structlog

from criagent import logs
from criagent.image.auth import RegistryAuth


class Stream(io.StringIO):
    """Standard error that is a terminal, or is none."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def set_up(monkeypatch: pytest.MonkeyPatch, level: str, *, terminal: bool = False) -> Stream:
    stream = Stream(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    logs.setup(level)
    return stream


def lines(stream: Stream) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_with_utc_time_and_bound_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = set_up(monkeypatch, "info")
    with structlog.contextvars.bound_contextvars(sandbox_id="s1"):
        structlog.get_logger("test").info("pod_started", pod="a\nb")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["sandbox_id"]) == ("pod_started", "info", "s1")
    assert line["pod"] == "a\nb"
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_events_below_the_level_are_not_written(
    monkeypatch: pytest.MonkeyPatch, level: str, seen: list[str]
) -> None:
    stream = set_up(monkeypatch, level)
    log = structlog.get_logger("test")
    for name in ("debug", "info", "warning", "error"):
        getattr(log, name)("x")
    assert [line["level"] for line in lines(stream)] == seen


def test_libraries_log_in_the_same_form_from_warning_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = set_up(monkeypatch, "debug")
    logging.getLogger("grpc").info("quiet")
    logging.getLogger("aiohttp.access").warning("odd %s", "request")
    try:
        raise ValueError("reason")
    except ValueError:
        logging.getLogger("grpc").exception("failed")
    odd, failed = lines(stream)
    assert (odd["event"], odd["level"]) == ("odd request", "warning")
    assert failed["exception"].endswith("ValueError: reason")


def log_failure(password: str) -> None:
    try:
        raise ValueError(f"refused {len(password)} characters")
    except ValueError:
        structlog.get_logger("test").exception("pull_failed")
        logging.getLogger("aiohttp").exception("pull_failed")


@pytest.mark.parametrize("terminal", [False, True])
def test_no_credential_is_written_even_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    stream = set_up(monkeypatch, "debug", terminal=terminal)
    auth = RegistryAuth(
        username="s3cret", password="s3cret", auth="s3cret", identity_token="s3cret"
    )
    structlog.get_logger("test").info("pull_asked", auth=auth)
    log_failure("s3cret")
    assert "s3cret" not in stream.getvalue()
    assert stream.getvalue().count("ValueError: refused 6 characters") == 2


def test_a_terminal_gets_readable_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = set_up(monkeypatch, "info", terminal=True)
    structlog.get_logger("test").info("pod_started")
    assert "pod_started" in stream.getvalue()
    assert not stream.getvalue().startswith("{")
