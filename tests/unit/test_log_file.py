# SPDX-License-Identifier: Apache-2.0
"""The CRI's log format as `criagent logs` reads it, and times as a person types them."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest

from criagent.cli.containers import ages, log_file, logs
from criagent.cli.containers.calls import CommandError

T = "2026-01-02T03:04:05.123456789Z"
NOW = dt.datetime(2026, 1, 2, 12, tzinfo=dt.UTC)


def tail(path: Path, number: int) -> list[bytes]:
    fd = log_file.opened(path)
    try:
        log_file.seek_to_tail(fd, number)
        return [line.content for line in log_file.lines_of(fd)]
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (f"{T} stdout F text", log_file.Line(T, False, False, b"text")),
        (f"{T} stderr P part ", log_file.Line(T, True, True, b"part ")),
        (f"{T} stdout F", log_file.Line(T, False, False, b"")),
        (f"{T} stdout F ", log_file.Line(T, False, False, b"")),
        (f"{T} stdout P:new x", log_file.Line(T, False, True, b"x")),
        ("no log line", log_file.Line("", False, False, b"no log line")),
        ("", log_file.Line("", False, False, b"")),
    ],
)
def test_a_line_is_read(raw: str, line: log_file.Line) -> None:
    assert log_file.parse(raw.encode()) == line


@pytest.mark.parametrize("number", [0, 1, 2, 3, 99, 100, 101, 10_000])
@pytest.mark.parametrize("length", [1, 1000])
@pytest.mark.parametrize("ended", [True, False])
def test_the_tail_is_the_last_lines(tmp_path: Path, number: int, length: int, ended: bool) -> None:
    path = tmp_path / "log"
    content = [f"{n} ".encode() * length for n in range(100)]
    written = b"".join(b"%s stdout F %s\n" % (T.encode(), line) for line in content)
    path.write_bytes(written if ended else written[:-1])
    assert tail(path, number) == (content[-number:] if number else [])


def test_parts_of_a_line_are_one_line_of_the_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tags = ["F", "P", "P", "F", "P", "F"]
    path.write_text("".join(f"{T} stdout {tag} {n}\n" for n, tag in enumerate(tags)))
    assert tail(path, 1) == [b"4", b"5"]
    assert tail(path, 2) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_link_device_or_directory_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "link", tmp_path / "fifo", tmp_path, tmp_path / "none"):
        with pytest.raises(CommandError):
            log_file.opened(path)


def test_terminals_get_no_control_characters() -> None:
    assert logs.escaped(b"a\tb\x1b[2J\x07\xff\r") == b"a\tb\\x1b[2J\\x07\\xff"
    assert logs.escaped("ä \u202e".encode()) == "ä \\u202e".encode()


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90s", NOW - dt.timedelta(seconds=90)),
        ("1h30m", NOW - dt.timedelta(hours=1, minutes=30)),
        ("2d", NOW - dt.timedelta(days=2)),
        ("2026-01-02T03:04:05Z", dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)),
        (T, dt.datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=dt.UTC)),
    ],
)
def test_since_takes_durations_and_times(text: str, at: dt.datetime) -> None:
    assert ages.since(text, NOW) == at


@pytest.mark.parametrize(
    "text", ["", "h", "1", "1w", "tomorrow", "9" * 30 + "d", "2026-13-01T00:00:00Z"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|longer"):
        ages.since(text, NOW)


def test_ages_have_one_unit() -> None:
    second = 1_000_000_000
    for passed, text in {0: "0s", 59: "59s", 60: "1m", 7200: "2h", 90_000: "1d"}.items():
        assert ages.age(0, passed * second) == text
    assert ages.age(10 * second, 0) == "0s"
