# SPDX-License-Identifier: Apache-2.0
"""Exec, attach and port-forward leave who, what and how it ended in the agent's log."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import api
from tests.support.pods import Pods
from tests.support.stream_client import V4, Command, Spdy, WebSocket
from tests.support.waiting import until

pytestmark = pytest.mark.root

Line = dict[str, Any]


def lines(container_or_pod: str, event: str) -> list[Line]:
    """Lines of the log about an object, oldest first."""
    found = []
    for text in agent.LOG.read_text().splitlines():
        if container_or_pod in text and text.startswith("{"):
            line = json.loads(text)
            if line["event"] == event:
                found.append(line)
    return found


def ended(object_id: str) -> Line:
    """The line of the end of the only session of an object."""
    until(lambda: lines(object_id, "session_ended"), "the line of the end")
    (line,) = lines(object_id, "session_ended")
    return line


def exec_url(pods: Pods, container_id: str, *command: str, tty: bool = False) -> str:
    request = api.ExecRequest(
        container_id=container_id, cmd=command, stdin=True, stdout=True, tty=tty
    )
    return str(pods.cri.runtime.Exec(request, timeout=10).url)


def test_an_exec_tells_who_what_and_how_it_ended(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    container_id = pods.running(pod=(sandbox, config))
    with Command(
        exec_url(pods, container_id, "sh", "-c", "cat; exit 3"), "stdin", "stdout"
    ) as client:
        client.send(client.streams["stdin"], b"hello", fin=True)
        client.result()
    (start,) = lines(container_id, "session_started")
    end = ended(container_id)
    for line in (start, end):
        assert line["session"] == "exec"
        assert line["pod"] == f"test/{config.metadata.name}"
        assert line["pod_uid"] == config.metadata.uid
        assert (line["container"], line["container_id"]) == (
            pods.cri.status(container_id).metadata.name,
            container_id,
        )
        assert line["cmd"] == "sh -c cat; exit 3"
        assert (line["tty"], line["level"]) == (False, "info")
    assert (end["exit_code"], end["received_bytes"], end["sent_bytes"]) == (3, 5, 5)
    assert end["seconds"] >= 0


def test_a_long_command_is_cut(pods: Pods) -> None:
    container_id = pods.running()
    with Command(exec_url(pods, container_id, "echo", "x" * 5000), "stdin", "stdout") as client:
        client.result()
    assert ended(container_id)["cmd"] == "echo " + "x" * 251 + "…"


@pytest.mark.parametrize("kind", ["spdy", "websocket"])
def test_a_client_that_leaves_is_told(pods: Pods, kind: str) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id, "sh", "-c", "echo here; sleep 6161")
    if kind == "spdy":
        with Command(url, "stdin", "stdout") as client:
            assert any(b"here" in frame.payload for frame in iter(client.frame, None))
    else:
        with WebSocket(url, V4) as socket:
            assert any(b"here" in message for message in iter(socket.message, None))
    end = ended(container_id)
    assert end["client_left"] is True
    assert "exit_code" not in end


def test_an_exec_that_cannot_be_is_told_with_its_error(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id, "true")
    pods.cri.stop(container_id)
    with Command(url, "stdin", "stdout") as client:
        client.result()
    assert "not running" in ended(container_id)["error"]


def test_an_attach_tells_who_and_how_it_ended(pods: Pods) -> None:
    def stdin(config: api.ContainerConfig) -> None:
        config.stdin = True

    container_id = pods.running("sh", "-c", "read line; echo got $line", change=stdin)
    request = api.AttachRequest(container_id=container_id, stdin=True, stdout=True)
    url = pods.cri.runtime.Attach(request, timeout=10).url
    with Command(url, "stdin", "stdout") as client:
        client.send(client.streams["stdin"], b"word\n")
        client.result()
    end = ended(container_id)
    assert (end["session"], end["received_bytes"], end["sent_bytes"]) == ("attach", 5, 9)


def test_a_port_forward_tells_its_ports(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    container_id = pods.running("sh", "-c", "echo hello | nc -l -p 7070", pod=(sandbox, config))
    until(lambda: b":7070" in pods.cri.exec(container_id, "netstat", "-ltn").stdout, "the listener")
    url = pods.cri.runtime.PortForward(
        api.PortForwardRequest(pod_sandbox_id=sandbox, port=[7070])
    ).url
    with Spdy(url, "portforward.k8s.io") as client:
        client.open(streamtype="error", port="9", requestid="0")
        refused = client.open(streamtype="data", port="9", requestid="0")
        client.until_fin(refused)
        client.open(streamtype="error", port="7070", requestid="1")
        data = client.open(streamtype="data", port="7070", requestid="1")
        assert client.until_fin(data)[data] == b"hello\n"
    (start,) = lines(sandbox, "session_started")
    assert (start["session"], start["pod"]) == ("port_forward", f"test/{config.metadata.name}")
    assert start["ports"] == [7070]
    end = ended(sandbox)
    assert (end["connections"], end["failed"], end["sent_bytes"]) == ({"7070": 1}, 1, 6)


def test_an_exec_sync_that_fails_is_told_and_one_that_runs_is_not(pods: Pods) -> None:
    container_id = pods.running()
    pods.cri.exec(container_id, "true")
    with pytest.raises(grpc.RpcError):
        pods.cri.exec(container_id, "sleep", "6262", timeout=1)
    (line,) = lines(container_id, "exec_sync_failed")
    assert (line["cmd"], line["rpc"]) == ("sleep 6262", "ExecSync")
    assert "timed out after 1 s" in line["error"]
    assert line["pod"].startswith("test/")


def test_ends_of_containers_and_holders_name_no_foreign_call(pods: Pods) -> None:
    def shared(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.pid = api.POD

    sandbox, config = pods.sandbox(shared)
    container_id = pods.running("sh", "-c", "exit 0", pod=(sandbox, config))
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    (line,) = lines(container_id, "container_exited")
    assert "rpc" not in line
