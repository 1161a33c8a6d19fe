# SPDX-License-Identifier: Apache-2.0
"""Logs: every byte once over rotations, parts of long lines, whole before the exit is told."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, container
from tests.support.node_state import monitor_pid
from tests.support.pods import Pods
from tests.support.refusals import refused
from tests.support.waiting import until

pytestmark = pytest.mark.root

INVALID = grpc.StatusCode.INVALID_ARGUMENT
MiB = 1 << 20
LINE = 1000  # characters of a counted line
_ENTRY = re.compile(rb"\S+ (stdout|stderr) ([FP]) (.*)", re.DOTALL)


def reopen(cri: Cri, container_id: str) -> None:
    request = api.ReopenContainerLogRequest(container_id=container_id)
    cri.runtime.ReopenContainerLog(request, timeout=60)


def entries(path: Path) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Stream, tag and content of each entry of a log."""
    with path.open("rb") as file:
        for line in file:
            assert line.endswith(b"\n"), f"torn entry in {path.name}"
            match = _ENTRY.fullmatch(line[:-1])
            assert match, line[:80]
            yield match[1], match[2], match[3]


class Counted:
    """A stream of counted lines out of log files, which may end within a line."""

    def __init__(self, width: int = 0) -> None:
        self.last = 0
        self._width = width
        self._part = b""

    def read(self, path: Path) -> None:
        for _, tag, content in entries(path):
            self._part += content
            if tag == b"F":
                assert int(self._part) == self.last + 1
                assert not self._width or len(self._part) == self._width
                self.last += 1
                self._part = b""

    def take(self, path: Path) -> None:
        """Read a final file and delete it."""
        self.read(path)
        path.unlink()

    def end(self) -> int:
        assert self._part == b""
        return self.last


@pytest.mark.timeout(600)
def test_a_gibibyte_is_rotated_without_losing_or_doubling_a_byte(pods: Pods) -> None:
    number = (1 << 30) // (LINE + 1) + 1
    container_id = pods.running(
        "awk", f'BEGIN {{ while (i++ < {number}) printf "%0{LINE}d\\n", i }}'
    )
    log = Path(pods.cri.status(container_id).log_path)
    counted = Counted(LINE)
    reads: list[Future[None]] = []

    def exited() -> bool:
        return bool(pods.cri.status(container_id).state == api.CONTAINER_EXITED)

    def large() -> bool:
        return log.exists() and log.stat().st_size > 16 * MiB

    with ThreadPoolExecutor(1) as reader:
        while not exited():
            until(lambda: large() or exited(), "16 MiB of output", 60)
            if not log.exists():
                break  # it ended while its log was rotated
            old = log.rename(f"{log}.{len(reads)}")
            try:
                reopen(pods.cri, container_id)
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.FAILED_PRECONDITION  # it exited meanwhile
            reads.append(reader.submit(counted.take, old))  # nobody writes to it any more
        for read in reads:
            read.result()
    if log.exists():
        counted.take(log)
    assert counted.end() == number
    assert len(reads) > 10


def test_a_log_is_reopened_again_and_again(pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; done")
    log = Path(pods.cri.status(container_id).log_path)
    files = []
    for number in range(100):
        files.append(log.rename(f"{log}.{number}"))
        reopen(pods.cri, container_id)
        assert log.exists()
    pods.cri.stop(container_id)
    counted = Counted()
    for file in [*files, log]:
        counted.read(file)
    assert counted.last > 1000
    with pytest.raises(grpc.RpcError) as caught:
        reopen(pods.cri, container_id)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def numbers(pods: Pods) -> tuple[str, Path]:
    """A container that has written numbers and goes on when it gets a line, and its log."""
    script = "seq 1 1000; read x; seq 1001 2000; sleep 100000"
    container_id = pods.running("sh", "-c", script, change=lambda c: setattr(c, "stdin", True))
    log = Path(pods.cri.status(container_id).log_path)
    until(lambda: log.read_bytes().endswith(b" 1000\n"), "the first half")
    return container_id, log


def go_on(container_id: str) -> None:
    """A line on the container's stdin, by its monitor's attach socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        client.connect(f"/run/criagent/containers/{container_id}/attach")
        client.send(b"go\n")


def content(*logs: Path) -> list[int]:
    """The numbers in the logs; a line may begin in one and end in the next."""
    parts = [
        text + (b"\n" if tag == b"F" else b"") for log in logs for _, tag, text in entries(log)
    ]
    return [int(line) for line in b"".join(parts).splitlines()]


def test_a_log_that_was_not_renamed_keeps_its_lines(pods: Pods) -> None:
    container_id, log = numbers(pods)
    for _ in range(3):
        reopen(pods.cri, container_id)
    go_on(container_id)
    until(lambda: log.read_bytes().endswith(b" 2000\n"), "the second half")
    assert content(log) == list(range(1, 2001))


def test_calls_at_once_make_one_file(pods: Pods) -> None:
    container_id, log = numbers(pods)
    old = log.rename(f"{log}.old")
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(reopen, pods.cri, container_id) for _ in range(8)]
        go_on(container_id)
        for call in calls:
            call.result()
    # The container may have written all of it before the first call was told.
    until(lambda: (old.read_bytes() + log.read_bytes()).endswith(b" 2000\n"), "the second half")
    assert content(old, log) == list(range(1, 2001))


def test_a_file_of_somebody_else_is_moved_aside(pods: Pods) -> None:
    container_id, log = numbers(pods)
    old = log.rename(f"{log}.old")
    log.write_text("not the container's\n")
    reopen(pods.cri, container_id)
    (aside,) = set(log.parent.glob(f"{log.name}.*")) - {old}
    assert re.fullmatch(rf"{re.escape(log.name)}\.\d{{8}}-\d{{6}}", aside.name)
    assert aside.read_text() == "not the container's\n"
    go_on(container_id)
    until(lambda: log.read_bytes().endswith(b" 2000\n"), "the second half")
    assert content(old, log) == list(range(1, 2001))


@pytest.mark.parametrize("trap", ["temporary is a directory", "log is a directory"])
def test_a_log_that_cannot_be_made_anew_costs_nobody(pods: Pods, trap: str) -> None:
    container_id, log = numbers(pods)
    old = log.rename(f"{log}.old")
    blocker = Path(f"{log}.tmp") if trap.startswith("temporary") else log
    blocker.mkdir()
    with pytest.raises(grpc.RpcError) as caught:
        reopen(pods.cri, container_id)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert str(log) in (caught.value.details() or "")
    go_on(container_id)
    until(lambda: old.read_bytes().endswith(b" 2000\n"), "the second half in the old file")
    assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING
    blocker.rmdir()
    reopen(pods.cri, container_id)
    assert content(old, log) == list(range(1, 2001))


def test_a_monitor_that_answers_late_replaces_nothing(pods: Pods) -> None:
    container_id, log = numbers(pods)
    monitor = monitor_pid(container_id)
    os.kill(monitor, signal.SIGSTOP)
    try:
        old = log.rename(f"{log}.old")
        with pytest.raises(grpc.RpcError) as caught:
            reopen(pods.cri, container_id)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        old.rename(log)  # as the kubelet does after an error
    finally:
        os.kill(monitor, signal.SIGCONT)
    go_on(container_id)
    until(lambda: log.read_bytes().endswith(b" 2000\n"), "the second half")
    assert content(log) == list(range(1, 2001))
    assert sorted(path.name for path in log.parent.iterdir()) == [log.name]


def test_long_lines_come_in_parts(pods: Pods) -> None:
    script = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo short; printf 'without an end'"
    container_id = pods.running("sh", "-c", script)
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    found = [(tag, text) for _, tag, text in entries(Path(pods.cri.status(container_id).log_path))]
    lines = [b""]
    for tag, text in found:
        assert len(text) <= 8192
        lines[-1] += text
        if tag == b"F":
            lines.append(b"")
    assert lines == [b"x" * 100_000, b"short", b"without an end"]
    assert [tag for tag, _ in found].count(b"F") == 2


def test_output_is_whole_when_the_exit_is_told(pods: Pods) -> None:
    """By the event, which is the first to tell, and by the status; for both streams."""
    sizes: dict[str, int] = {}
    stream = pods.cri.runtime.GetContainerEvents(api.GetEventsRequest())
    stream.initial_metadata()  # it is subscribed

    def listen() -> None:
        try:
            for event in stream:
                if event.container_event_type == api.CONTAINER_STOPPED_EVENT:
                    for status in event.containers_statuses:
                        sizes.setdefault(status.id, Path(status.log_path).stat().st_size)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.CANCELLED

    listener = threading.Thread(target=listen)
    listener.start()
    sandbox = pods.sandbox()
    for number in range(10):
        container_id = pods.running(
            "sh", "-c", f"seq 1 {20000 * number}; echo err >&2", pod=sandbox
        )
        until(
            lambda container_id=container_id: (
                pods.cri.status(container_id).state == api.CONTAINER_EXITED
            ),
            "the exit",
        )
        log = Path(pods.cri.status(container_id).log_path)
        size = log.stat().st_size
        found = list(entries(log))
        streams = [stream for stream, _, _ in found]
        assert streams.count(b"stdout") >= 20000 * number
        assert streams.count(b"stderr") == 1
        until(lambda container_id=container_id: container_id in sizes, "the event")
        assert sizes[container_id] == size == log.stat().st_size
    stream.cancel()
    listener.join()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("tty", [False, True])
def test_the_group_of_a_log_may_read_it_before_and_after_a_rotation(
    pods: Pods, tmp_path: Path, *, tty: bool
) -> None:
    logs = tmp_path / "collected"
    logs.mkdir()
    os.chown(logs, 0, 4)
    logs.chmod(0o2755)
    pods.logs = logs / "pod"
    container_id = pods.running(change=lambda config: setattr(config, "tty", tty))
    log = Path(pods.cri.status(container_id).log_path)
    assert (mode_of(log), log.stat().st_gid) == (0o640, 4)
    for number in range(2):
        log.rename(f"{log}.{number}")
        reopen(pods.cri, container_id)
        assert (mode_of(log), log.stat().st_gid) == (0o640, 4)
        assert mode_of(Path(f"{log}.{number}")) == 0o640


def test_the_mode_of_a_log_is_not_the_umasks(pods: Pods) -> None:
    agent.stop()
    before = os.umask(0o077)
    try:
        pods.cri = agent.start()
    finally:
        os.umask(before)
    container_id = pods.running()
    assert mode_of(Path(pods.cri.status(container_id).log_path)) == 0o640
    agent.stop()
    agent.start().close()


@pytest.mark.parametrize(
    "trap", ["link", "dangling", "fifo", "directory", "device", "long", "below"]
)
def test_a_log_that_is_no_plain_file_is_refused_and_untouched(
    pods: Pods, tmp_path: Path, trap: str
) -> None:
    """A pod with the node's /var/log can leave such a thing for the next container's name."""
    victim = tmp_path / "victim"
    victim.write_text("of the node")
    logs = tmp_path / "logs"
    logs.mkdir()
    pods.logs = logs
    log = logs / "0.log"
    if trap in {"link", "dangling"}:
        log.symlink_to(victim if trap == "link" else tmp_path / "made")
    elif trap == "fifo":
        os.mkfifo(log)
    elif trap == "directory":
        log.mkdir()
    elif trap == "device":
        os.mknod(log, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    (logs / "file").touch()
    name = {"long": "n" * 300, "below": "file/0.log"}.get(trap, "0.log")
    sandbox, config = pods.sandbox()
    wanted = container("trapped", ["sh", "-c", "echo written"])
    wanted.log_path = name
    refused(lambda: pods.cri.create(sandbox, wanted, config), INVALID, "log '")
    assert victim.read_text() == "of the node"
    assert not (tmp_path / "made").exists()
    assert pods.cri.containers() == []
