# SPDX-License-Identifier: Apache-2.0
"""Exec with each kind of OCI runtime: terminals, background children, limits, what is left."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import api
from tests.support.pods import Pods
from tests.support.stream_client import Command, WebSocket
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.parametrize("handler", ["crun", "runc"])]

TERMINAL = ("stdin", "stdout", "resize")  # the streams of a session with one
LONG_S = 30  # what a call may take on a busy machine that waits for nobody


def started(pods: Pods, handler: str, *command: str) -> str:
    config = pods.config()
    return pods.running(*command, pod=(pods.cri.run(config, handler=handler), config))


def exec_url(pods: Pods, container_id: str, *command: str, tty: bool = False) -> str:
    request = api.ExecRequest(
        container_id=container_id, cmd=command, stdin=True, stdout=True, stderr=not tty, tty=tty
    )
    return str(pods.cri.runtime.Exec(request, timeout=10).url)


def zombies() -> list[str]:
    """Children of the agent that it did not reap."""
    pid = Path("/run/criagent.pid").read_text()
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, fields = file.read_text().rpartition(")")
        except OSError:
            continue
        if fields.split()[:2] == ["Z", pid]:
            found.append(file.parent.name)
    return found


def test_a_terminal_has_its_size_and_its_exit_code(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    script = "stty size; tty; read line; echo got $line; exit 3"
    with Command(
        exec_url(pods, container_id, "sh", "-c", script, tty=True), "stdin", "stdout", "resize"
    ) as c:
        c.send(c.streams["resize"], b'{"Width":91,"Height":37}')
        c.send(c.streams["stdin"], b"word\n")
        output, _, status = c.result()
    assert b"37 91\r\n" in output
    assert b"/dev/pts/" in output
    assert output.endswith(b"got word\r\n")
    assert status["details"]["causes"][0]["message"] == "3"


def test_a_terminal_over_a_websocket(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    with WebSocket(
        exec_url(pods, container_id, "sh", "-c", "tty; exit 4", tty=True), "v5.channel.k8s.io"
    ) as c:
        found = c.channels()
    assert found[1].startswith(b"/dev/pts/")
    assert json.loads(found[3])["details"]["causes"][0]["message"] == "4"


def test_a_terminal_that_ends_at_once(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    for _ in range(10):
        with Command(exec_url(pods, container_id, "true", tty=True), *TERMINAL) as client:
            assert client.result()[2]["status"] == "Success"


def test_a_command_that_is_not_there_is_told(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    with Command(exec_url(pods, container_id, "/no/such", tty=True), *TERMINAL) as client:
        output, _, status = client.result()
    assert b"/no/such" in output
    assert status["reason"] == "NonZeroExitCode"
    answer = pods.cri.exec(container_id, "/no/such")
    assert answer.exit_code != 0
    assert b"/no/such" in answer.stderr


def test_a_background_child_holds_back_no_exec_sync(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    began = time.monotonic()
    answer = pods.cri.exec(container_id, "sh", "-c", "sleep 5353 & echo out; echo err >&2; exit 9")
    assert time.monotonic() - began < LONG_S
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 9)
    assert b"5353" in pods.cri.exec(container_id, "ps", "-o", "args").stdout


def test_a_background_child_holds_back_no_session(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    url = exec_url(pods, container_id, "sh", "-c", "sleep 5454 & echo out; exit 9")
    began = time.monotonic()
    with Command(url, "stdin", "stdout", "stderr") as client:
        output, _, status = client.result()
    assert time.monotonic() - began < LONG_S
    assert output == b"out\n"
    assert status["details"]["causes"][0]["message"] == "9"
    assert b"5454" in pods.cri.exec(container_id, "ps", "-o", "args").stdout


def test_a_command_that_ended_in_time_is_not_timed_out_by_its_children(
    pods: Pods, handler: str
) -> None:
    """The time-out is over before the output's end, which is waited for as long by default."""
    container_id = started(pods, handler)
    answer = pods.cri.exec(container_id, "sh", "-c", "sleep 5656 & echo out; sleep 0.5", timeout=1)
    assert (answer.stdout, answer.exit_code) == (b"out\n", 0)
    assert b"5656" in pods.cri.exec(container_id, "ps", "-o", "args").stdout


def test_a_time_out_kills_the_whole_tree(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.exec(container_id, "sh", "-c", "(setsid sleep 5757 &) ; sleep 5757", timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert b"5757" not in pods.cri.exec(container_id, "ps", "-o", "args").stdout
    until(lambda: zombies() == [], "all reaped")


def test_a_client_that_leaves_ends_its_command(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    for tty in (False, True):
        kinds = TERMINAL if tty else ("stdin", "stdout", "stderr")
        url = exec_url(pods, container_id, "sh", "-c", "echo here; exec sleep 5858", tty=tty)
        with Command(url, *kinds) as client:
            assert any(b"here" in frame.payload for frame in iter(client.frame, None))
        until(
            lambda: b"5858" not in pods.cri.exec(container_id, "ps", "-o", "args").stdout, "its end"
        )
    until(lambda: zombies() == [], "all reaped")


def test_many_at_once_have_their_own_codes_and_leave_nothing(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    calls = [
        pods.cri.runtime.ExecSync.future(
            api.ExecSyncRequest(container_id=container_id, cmd=["sh", "-c", f"echo {n}; exit {n}"]),
            timeout=120,
        )
        for n in range(40)
    ]
    answers = [call.result() for call in calls]
    assert [(a.stdout, a.exit_code) for a in answers] == [(b"%d\n" % n, n) for n in range(40)]
    assert pods.cri.exec(container_id, "sh", "-c", "kill -9 $$").exit_code == 137
    until(lambda: zombies() == [], "all reaped")
    assert not list(Path("/run/criagent/containers", container_id).glob("exec-*"))


def test_an_agent_that_dies_takes_its_commands_along(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    call = pods.cri.runtime.ExecSync.future(
        api.ExecSyncRequest(container_id=container_id, cmd=["sleep", "5959"]), timeout=60
    )
    until(lambda: b"5959" in pods.cri.exec(container_id, "ps", "-o", "args").stdout, "the command")
    agent.kill()
    assert call.exception(timeout=60) is not None
    pods.cri = agent.start()
    assert b"5959" not in pods.cri.exec(container_id, "ps", "-o", "args").stdout
    assert not list(Path("/run/criagent/containers", container_id).glob("exec-*"))


def test_what_a_killed_monitor_leaves_is_reaped(pods: Pods, handler: str) -> None:
    container_id = started(pods, handler)
    info = json.loads(
        pods.cri.runtime.ContainerStatus(
            api.ContainerStatusRequest(container_id=container_id, verbose=True)
        ).info["info"]
    )
    monitor = int(Path(f"/proc/{info['pid']}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(monitor, signal.SIGKILL)
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    assert pods.cri.status(container_id).reason == "ContainerMonitorLost"
    until(lambda: zombies() == [], "all reaped")
