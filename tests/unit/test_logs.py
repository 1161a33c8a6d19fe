# SPDX-License-Identifier: Apache-2.0
"""Log lines: one JSON object each, whoever logs, and never a credential."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import structlog

from criagent.image.hosts.credentials import RegistryAuth
from criagent.telemetry import logs


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
    assert line["pod"] == "a\\nb"  # a text that is printed as it is breaks no terminal
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


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3)]
)
def test_lines_to_the_journal_begin_with_their_priority(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, level: str, priority: int
) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        facts = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{facts.st_dev}:{facts.st_ino}")
        monkeypatch.setattr(sys, "stderr", stream)
        logs.setup("debug")
        getattr(structlog.get_logger("test"), level)("x")
        getattr(logging.getLogger("grpc"), level)("y")
        stream.flush()
        stream.seek(0)
        found = stream.read().splitlines()
    assert found[0].startswith(f"<{priority}>{{")
    assert json.loads(found[0][3:])["level"] == level
    assert len(found) == (2 if priority <= 4 else 1)
    assert found[-1].startswith(f"<{priority}>{{")


@pytest.mark.parametrize("value", ["1:2", "", "garbage"])
def test_a_journal_of_somebody_else_adds_no_priority(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", value)
    stream = set_up(monkeypatch, "info")
    structlog.get_logger("test").info("x")
    assert stream.getvalue().startswith("{")


def test_the_event_comes_first_then_level_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = set_up(monkeypatch, "info")
    with structlog.contextvars.bound_contextvars(rpc="Exec", trace_id="t"):
        structlog.get_logger("test").info("x", ms=1, pod="n/p")
    assert list(lines(stream)[0]) == [
        "event",
        "level",
        "timestamp",
        "rpc",
        "trace_id",
        "pod",
        "ms",
    ]


ODD = "\x1b]0;x\x07\n"
LIMIT = 48 << 10  # LineMax= of journald.conf(5)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 5_000_000,
        ODD * 100_000,
        "\ud800" * 100_000,
        "🐧" * 100_000,
        ["x" * 100_000] * 1000,
        [ODD] * 100_000,
        {"k" * 100_000: ["v" * 100_000] * 100},
        {f"{n}": ODD for n in range(100_000)},
        b"\xff" * 1_000_000,
        {"x" * 10_000},
        [[["x" * 1000] * 10] * 10] * 100,
        ValueError("x" * 1_000_000),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_is_short_and_harmless_whatever_its_facts_are(
    monkeypatch: pytest.MonkeyPatch, value: object, *, terminal: bool
) -> None:
    stream = set_up(monkeypatch, "info", terminal=terminal)
    structlog.get_logger("test").info("x", a=value, b=value, c=value, last="kept")
    written = stream.getvalue()
    assert "kept" in written
    assert written.count("\n") == 1
    assert terminal or len(written) <= LIMIT
    assert "\x07" not in written
    assert terminal or json.loads(written)["event"] == "x"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_traceback_is_bounded_too(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
    def deep(left: int) -> None:
        if left:
            deep(left - 1)
        raise ValueError(ODD + "x" * 1_000_000)

    stream = set_up(monkeypatch, "info", terminal=terminal)
    try:
        deep(100)
    except ValueError:
        structlog.get_logger("test").exception("failed", a="x" * 100_000)
        logging.getLogger("grpc").exception("failed")
    written = stream.getvalue()
    assert "ValueError: \\x1b" in written.replace("\\\\", "\\")
    assert "\x07" not in written
    for line in written.splitlines() if not terminal else []:
        assert len(line) <= LIMIT


def test_lines_are_counted_by_level_but_not_those_of_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_up(monkeypatch, "info")
    before = logs.LINES.copy()
    log = structlog.get_logger("test")
    log.error("broken")
    log.error(logs.CALL)
    log.warning("odd")
    assert {key: n - before[key] for key, n in logs.LINES.items() if n != before[key]} == {
        "error": 1,
        "warning": 1,
    }


_FAILS = """
import sys, threading
from criagent.telemetry import logs
logs.setup("info")
logs.take_uncaught()
def fail():
    raise ValueError("in a thread")
thread = threading.Thread(target=fail, name="busy")
thread.start()
thread.join()
class Odd:
    def __del__(self):
        raise ValueError("in a destructor")
Odd()
raise ValueError("in the main thread")
"""
# Where nobody gets the error: each ends the process before its last line.
_WITHOUT_MEMORY = {
    "a thread": "threading.Thread(target=fail).start()",
    "a destructor": "type('Odd', (), {'__del__': fail})()",
    "a callback of the event loop": "loop.call_soon(fail)\nloop.run_until_complete(sleep(1))",
    "a callback of a future": "executor.submit(int).add_done_callback(fail)",
    "a background task": "loop.run_until_complete(background())",
    "a listener": "notify([fail], 'row', None)",
    "the main thread": "fail()",
}
_WITHOUT_MEMORY_BEGIN = """
import asyncio, threading
from asyncio import sleep
from concurrent.futures import ThreadPoolExecutor
from criagent.base.aio import supervised
from criagent.store.listeners import notify
from criagent.telemetry import logs
logs.setup("info")
logs.take_uncaught()
loop = asyncio.new_event_loop()
executor = ThreadPoolExecutor()
def fail(*_):
    raise MemoryError
async def background():
    async def work():
        fail()
    supervised(work(), name="work")
    await sleep(1)
"""
_WORKER_FAILS = """
import sys
from criagent.image.unpack import worker
worker.unshare = None
worker.main()
"""


@pytest.mark.parametrize(
    ("script", "wheres"),
    [
        (_FAILS, ["the thread busy", "<function Odd.__del__", "the main thread"]),
        (_WORKER_FAILS, ["an unpack worker"]),
    ],
)
def test_what_nobody_catches_is_one_line_of_level_error_each(
    tmp_path: Path, script: str, wheres: list[str]
) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        facts = os.fstat(stream.fileno())
        environment = {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}",
        }
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, stderr=stream, check=False
        )
        stream.seek(0)
        written = stream.read().splitlines()
    assert done.returncode == 1
    assert [line[:3] for line in written] == ["<3>"] * len(wheres)
    found = [json.loads(line[3:]) for line in written]
    assert {one["event"] for one in found} == {"uncaught_exception"}
    for one, where in zip(found, wheres, strict=True):
        assert one["where"].startswith(where)
        assert "Traceback" in one["exception"]


@pytest.mark.parametrize("where", _WITHOUT_MEMORY)
def test_the_agent_ends_when_memory_is_short_where_no_caller_gets_the_error(where: str) -> None:
    script = f"{_WITHOUT_MEMORY_BEGIN}{_WITHOUT_MEMORY[where]}\nprint('goes on')"
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["level"]) for line in lines] == [("out_of_memory", "error")]
    assert "MemoryError" in lines[0]["exception"]
    assert done.returncode == 1
    assert done.stdout == ""
