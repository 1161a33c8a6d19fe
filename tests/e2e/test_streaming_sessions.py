# SPDX-License-Identifier: Apache-2.0
"""Exec and attach as protocols: versions, ends, sizes, slow and vanishing clients."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import api
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.stream_client import V4, Command, Spdy, WebSocket
from tests.support.waiting import until

pytestmark = pytest.mark.root

SPDY = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")


def exec_url(pods: Pods, container_id: str, *words: str, **streams: bool) -> str:
    wanted = streams or {"stdout": True}
    return str(
        pods.cri.runtime.Exec(api.ExecRequest(container_id=container_id, cmd=words, **wanted)).url
    )


def attach_url(pods: Pods, container_id: str, **streams: bool) -> str:
    wanted = streams or {"stdout": True}
    return str(pods.cri.runtime.Attach(api.AttachRequest(container_id=container_id, **wanted)).url)


def commands(pods: Pods, container_id: str) -> list[bytes]:
    return pods.cri.exec(container_id, "ps", "-o", "args").stdout.split(b"\n")


def exec_leftovers(container_id: str) -> list[str]:
    """Cgroups and files of execs."""
    tops = (Path("/sys/fs/cgroup"), Path("/run/criagent/containers") / container_id)
    return [str(path) for top in tops for path in top.rglob("exec-*")]


@pytest.mark.parametrize("protocol", SPDY)
@pytest.mark.parametrize("code", [0, 3])
def test_the_outcome_over_spdy_by_version(pods: Pods, protocol: str, code: int) -> None:
    container_id = pods.running()
    script = f"echo out; echo err >&2; exit {code}"
    url = exec_url(pods, container_id, "sh", "-c", script, stdout=True, stderr=True)
    with Command(url, "stdout", "stderr", protocol=protocol) as command:
        assert f"X-Stream-Protocol-Version: {protocol}".lower() in command.head.lower()
        out, err, told = command.result()
    assert (out, err) == (b"out\n", b"err\n")
    if protocol == V4:
        assert told["status"] == ("Failure" if code else "Success")
    else:
        assert told == (f"command terminated with non-zero exit code: {code}" if code else "")


@pytest.mark.parametrize(
    ("protocol", "first", "last"),
    [
        ("v5.channel.k8s.io", b"\x01", b'"Success"'),
        ("v4.channel.k8s.io", b"\x01", b'"Success"'),
        ("v4.base64.channel.k8s.io", b"1", b'"Success"'),
        ("channel.k8s.io", b"\x01", b""),
        ("base64.channel.k8s.io", b"1", b""),
        (None, b"\x01", b""),  # none offered: the oldest of all
    ],
)
def test_the_outcome_over_websockets_by_version(
    pods: Pods, protocol: str | None, first: bytes, last: bytes
) -> None:
    container_id = pods.running()
    offered = [protocol] if protocol else []
    with WebSocket(exec_url(pods, container_id, "echo", "out"), *offered) as client:
        assert client.subprotocol == protocol
        assert client.message() == first
        found = client.channels()
    if first == b"1":
        found = {channel - 48: base64.b64decode(data) for channel, data in found.items()}
    assert found[1] == b"out\n"
    assert last in found.get(3, b"")
    assert (3 in found) == bool(last)


def test_a_signal_is_told_as_its_exit_code(pods: Pods) -> None:
    container_id = pods.running()
    with Command(exec_url(pods, container_id, "sh", "-c", "kill -9 $$"), "stdout") as command:
        status = command.result()[2]
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "137"}]


def test_a_command_that_is_not_there_is_told(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id, "/no/such/command", stdout=True, stderr=True)
    with Command(url, "stdout", "stderr") as command:
        _, err, status = command.result()
    assert status["status"] == "Failure"
    assert b"/no/such/command" in err


def test_the_first_size_is_there_before_the_command_and_later_ones_follow(pods: Pods) -> None:
    container_id = pods.running()
    script = "stty size; trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
    url = exec_url(pods, container_id, "sh", "-c", script, tty=True, stdin=True, stdout=True)
    with Spdy(url, V4) as client:
        error = client.open(streamtype="error")
        client.open(streamtype="stdin")
        output = client.open(streamtype="stdout")
        sizes = (
            b'garbage}{"Width":0,"Height":5}{"Width":1e9,"Height":',
            b'5}{"Wid',
            b'th":81,"Height":25}\n',
        )
        # At once: the agent waits only a moment for the first size.
        resize = client.open(*sizes, streamtype="resize")
        data = b""
        while b"ready" not in data:
            frame = client.frame()
            assert frame is not None
            data += frame.payload if frame.kind == 0 and frame.stream == output else b""
        assert data.split(b"\r\n")[0] == b"25 81"
        client.send(resize, b"[" * 5000 + b'}{"Width":100,"Height":40}')
        found = client.until_fin(error, output)
    assert b"40 100" in found[output]
    assert json.loads(found[error])["status"] == "Success"


def test_an_attached_terminal_gets_the_last_of_sizes_that_come_at_once(pods: Pods) -> None:
    def on_terminal(config: api.ContainerConfig) -> None:
        config.tty = config.stdin = True

    container_id = pods.running("sh", change=on_terminal)
    url = attach_url(pods, container_id, tty=True, stdin=True, stdout=True)
    with Spdy(url, V4) as client:
        for kind in ("error", "stdin", "stdout"):
            client.open(streamtype=kind)
        resize = client.open(streamtype="resize")
        for number in range(1, 41):
            client.send(resize, b'{"Width":%d,"Height":%d}' % (100 + number, number))
        size = ("sh", "-c", "stty size < /proc/1/fd/0")
        until(lambda: pods.cri.exec(container_id, *size).stdout == b"40 140\n", "the last size", 5)


def test_stdin_ends_with_its_stream_alone(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(
        pods, container_id, "sh", "-c", "cat; sleep 0.2; echo done", stdin=True, stdout=True
    )
    with Command(url, "stdin", "stdout") as command:
        command.send(command.streams["stdin"], b"hello\n", fin=True)
        assert command.result()[0] == b"hello\ndone\n"
    url = exec_url(
        pods, container_id, "sh", "-c", "cat; sleep 0.2; echo done", stdin=True, stdout=True
    )
    with WebSocket(url, "v5.channel.k8s.io") as client:
        client.send(b"\x00hello\n")
        client.send(b"\xff\x00")
        assert client.channels()[1] == b"hello\ndone\n"


def test_what_nobody_asked_for_does_no_harm(pods: Pods) -> None:
    container_id = pods.running()
    with WebSocket(
        exec_url(pods, container_id, "sh", "-c", "sleep 0.3; echo out; echo err >&2"), V4
    ) as client:
        for message in (b"", b"\x00" + bytes(1 << 20), b"\x09x", b"\x04{}", b"\xff\x00", b"\x01x"):
            client.send(message)
        found = client.channels()
    assert found[1] == b"out\n"
    assert 2 not in found  # stderr was not wanted
    with Command(
        exec_url(pods, container_id, "sh", "-c", "sleep 0.3; echo out"), "stdout"
    ) as command:
        more = [command.open(streamtype=kind) for kind in ("stdin", "stdout", "stderr", "x")]
        for stream in more:
            command.send(stream, bytes(1 << 20))
        assert command.result()[0] == b"out\n"


def test_broken_base64_ends_the_socket_and_the_command(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id, "sleep", "7474", stdin=True, stdout=True)
    with WebSocket(url, "v4.base64.channel.k8s.io") as client:
        client.send(b"0not base64!", text=True)
        while client.message() is not None:
            pass
    until(lambda: b"sleep 7474" not in commands(pods, container_id), "its end")


def test_100_mb_of_stdin_arrive_whole(pods: Pods) -> None:
    container_id = pods.running()
    block = random.Random(4).randbytes(1 << 20)
    digest = hashlib.sha256()
    url = exec_url(pods, container_id, "sha256sum", stdin=True, stdout=True)
    before = agent_facts()["rss_kb"]
    with Command(url, "stdin", "stdout") as command:
        for _ in range(100):
            digest.update(block)
            command.send(command.streams["stdin"], block)
        command.send(command.streams["stdin"], b"", fin=True)
        assert command.result()[0].split()[0].decode() == digest.hexdigest()
    assert agent_facts()["rss_kb"] < before + 20_000


def test_output_waits_for_a_slow_reader_even_after_the_command(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id, "sh", "-c", "head -c 300000 /dev/zero; touch /ended")
    with Command(url, "stdout", buffer=4096) as command:
        until(
            lambda: pods.cri.exec(container_id, "ls", "/").stdout.count(b"ended"),
            "the command's end",
        )
        until(lambda: b"head" not in b" ".join(commands(pods, container_id)), "its processes' end")
        pods.cri.exec(container_id, "sleep", "1.5")  # longer than output may trail the command
        out, _, status = command.result()
    assert (len(out), status["status"]) == (300_000, "Success")


def test_background_children_outlive_a_command_that_ended(pods: Pods) -> None:
    container_id = pods.running()
    for script in ("sleep 7575 >/dev/null 2>&1 & echo out", "sleep 7676 & echo out"):
        with Command(exec_url(pods, container_id, "sh", "-c", script), "stdout") as command:
            out, _, status = command.result()
        assert (out, status["status"]) == (b"out\n", "Success")
    assert {b"sleep 7575", b"sleep 7676"} <= set(commands(pods, container_id))


@pytest.mark.parametrize("tty", [False, True])
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_a_client_that_leaves_with_stdin_unread_is_noticed(
    pods: Pods, transport: str, tty: bool
) -> None:
    container_id = pods.running()
    before = agent_facts()
    script = "setsid sleep 7777 & exec sleep 7777"
    url = exec_url(pods, container_id, "sh", "-c", script, stdin=True, stdout=True, tty=tty)
    kinds = ("stdin", "stdout", *(("resize",) if tty else ()))
    client = Command(url, *kinds) if transport == "spdy" else WebSocket(url, V4)
    until(lambda: commands(pods, container_id).count(b"sleep 7777") == 2, "the command")
    client.socket.settimeout(0.3)  # until nobody takes more
    try:
        while True:
            if isinstance(client, Command):
                client.send(client.streams["stdin"], bytes(32768))
            else:
                client.send(bytes(32768))
    except TimeoutError:
        pass
    client.socket.close()
    until(lambda: b"sleep 7777" not in commands(pods, container_id), "the commands' end")
    until(lambda: not exec_leftovers(container_id), "nothing left of it")
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")


def test_a_reader_that_never_reads_costs_little_and_leaves_nothing(pods: Pods) -> None:
    container_id = pods.running()
    before = agent_facts()
    clients = [
        Command(exec_url(pods, container_id, "yes"), "stdout", buffer=4096) for _ in range(20)
    ]
    sockets = [WebSocket(exec_url(pods, container_id, "yes"), V4) for _ in range(20)]
    until(lambda: commands(pods, container_id).count(b"yes") == 40, "forty commands")
    with Command(exec_url(pods, container_id, "seq", "1", "100000"), "stdout") as command:
        assert command.result()[0].endswith(b"\n100000\n")  # others are served
    assert agent_facts()["rss_kb"] < before["rss_kb"] + 60_000
    for client in (*clients, *sockets):
        client.socket.close()  # type: ignore[attr-defined]
    until(lambda: b"yes" not in commands(pods, container_id), "their end")
    until(lambda: not exec_leftovers(container_id), "nothing left of them")
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")
    until(lambda: agent_facts()["threads"] <= before["threads"], "threads ended")


def test_an_agent_that_is_killed_leaves_no_command_behind(pods: Pods) -> None:
    container_id = pods.running()
    with Command(
        exec_url(pods, container_id, "sh", "-c", "sleep 7878 & echo up"), "stdout"
    ) as command:
        command.result()
    client = Command(exec_url(pods, container_id, "sh", "-c", "echo up; exec sleep 7979"), "stdout")
    until(lambda: b"sleep 7979" in commands(pods, container_id), "the command")
    agent.kill()
    client.close()
    pods.cri.close()
    pods.cri = agent.start()
    until(lambda: b"sleep 7979" not in commands(pods, container_id), "its end")
    assert b"sleep 7878" in commands(pods, container_id)  # had outlived its exec
    assert len([path for path in exec_leftovers(container_id) if "/containers/" in path]) == 0


def test_several_attach_at_once_and_leave_stdin_open(pods: Pods) -> None:
    def stdin(config: api.ContainerConfig) -> None:
        config.stdin = True

    container_id = pods.running(
        "sh", "-c", "while read x; do echo got $x; done; echo end", change=stdin
    )
    watchers = [Command(attach_url(pods, container_id), "stdout") for _ in range(5)]
    for word in ("one", "two"):
        with Command(
            attach_url(pods, container_id, stdin=True, stdout=True), "stdin", "stdout"
        ) as client:
            client.send(client.streams["stdin"], f"{word}\n".encode(), fin=True)
            until(lambda word=word: f"got {word}\n" in pods.log(container_id), f"{word} in the log")
    assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING
    pods.cri.stop(container_id)
    for watcher in watchers:
        out, _, status = watcher.result()
        assert (out, status["status"]) == (b"got one\ngot two\n", "Success")
        watcher.close()


def test_stdin_once_ends_with_the_client_that_fed_it(pods: Pods) -> None:
    def once(config: api.ContainerConfig) -> None:
        config.stdin = config.stdin_once = True

    container_id = pods.running("sh", "-c", "cat; echo end", change=once)
    with Command(
        attach_url(pods, container_id, stdin=True, stdout=True), "stdin", "stdout"
    ) as client:
        client.send(client.streams["stdin"], b"hello\n", fin=True)
        assert client.result()[0] == b"hello\nend\n"
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "its exit")


def test_one_who_only_looks_on_does_not_end_stdin(pods: Pods) -> None:
    def once(config: api.ContainerConfig) -> None:
        config.stdin = config.stdin_once = True

    container_id = pods.running(
        "sh", "-c", "while read x; do echo got $x; done; echo end", change=once
    )
    before = agent_facts()
    for _ in range(20):
        Command(attach_url(pods, container_id), "stdout").close()
    with Command(
        attach_url(pods, container_id, stdin=True, stdout=True), "stdin", "stdout"
    ) as client:
        client.send(client.streams["stdin"], b"one\n")
        until(lambda: pods.log(container_id) == "got one\n", "the line")
        client.send(client.streams["stdin"], b"", fin=True)
        assert client.result()[0] == b"got one\nend\n"
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")


def test_a_peer_that_keeps_windows_is_not_sent_more_than_they_hold(pods: Pods) -> None:
    container_id = pods.running()
    url = exec_url(pods, container_id, "sh", "-c", "read go; seq 1 100000", stdin=True, stdout=True)
    with Command(url, "stdin", "stdout") as command:
        output = command.streams["stdout"]
        command.window(output, 1000)
        command.send(command.streams["stdin"], b"go\n")  # which the agent reads after the window
        data, window, total = (
            b"",
            (64 << 10) + 1000,
            len(b"".join(b"%d\n" % n for n in range(1, 100_001))),
        )
        while len(data) < total:
            frame = command.frame()
            assert frame is not None
            if frame.kind == 0 and frame.stream == output:
                data += frame.payload
                window -= len(frame.payload)
                assert window >= 0
                if window < 2000:
                    command.window(output, 50_000)
                    window += 50_000
        assert data.endswith(b"\n100000\n")


def test_sessions_side_by_side_do_not_mix(pods: Pods) -> None:
    container_id = pods.running()
    failures: list[object] = []

    def one(number: int) -> None:
        try:
            text = b"%d\n" % number * 20_000
            url = exec_url(pods, container_id, "cat", stdin=True, stdout=True)
            with Command(url, "stdin", "stdout") as command:
                feeding = threading.Thread(
                    target=command.send, args=(command.streams["stdin"], text), kwargs={"fin": True}
                )
                feeding.start()
                assert command.result()[0] == text
                feeding.join()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_monitors_survive_clients_that_leave_amid_output(pods: Pods) -> None:
    def stdin(config: api.ContainerConfig) -> None:
        config.stdin = True

    container_id = pods.running("sh", "-c", "while read x; do echo got $x; done", change=stdin)
    before = agent_facts()

    def one(number: int) -> None:
        url = attach_url(pods, container_id, stdin=True, stdout=True)
        with Command(url, "stdin", "stdout") as client:
            client.send(client.streams["stdin"], b"x\n" * (1 + number % 50))
            client.frame()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(1500)))
    assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING
    until(lambda: agent_facts()["fds"] <= before["fds"], "descriptors closed")
