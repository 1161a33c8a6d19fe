# SPDX-License-Identifier: Apache-2.0
"""kubectl's streams through API server and kubelet: logs, exec, attach, cp, port-forward, debug."""

from __future__ import annotations

import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, Space, restarts
from tests.cluster.ground import Json, eventually, fetch, seconds
from tests.cluster.manifests import container, pod, service, web
from tests.cluster.terminal import Running
from tests.support.cri_client import BUSYBOX

pytestmark = pytest.mark.timeout(seconds(120))


@pytest.fixture(scope="module")
def shell(space: Space) -> str:
    """A pod that sleeps."""
    space.make("pods", pod("shell"))
    space.until_ready("shell")
    return "shell"


def test_logs_are_followed_to_the_end(space: Space) -> None:
    script = 'trap "exit 0" TERM; i=0; while :; do i=$((i+1)); echo "line $i"; sleep 0.1; done'
    space.make("pods", pod("talker", container("main", ("sh", "-c", script))))
    space.until_ready("talker")
    with Running(space, "logs", "-f", "talker") as following:
        seen = following.until("line 30\n")
        assert seen == "".join(f"line {number}\n" for number in range(1, 31))
        assert space.logs("talker", "--tail=1").startswith("line ")
        stamped = space.logs("talker", "--timestamps", "--limit-bytes=200").splitlines()[0]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\S+ line 1", stamped)
        space.delete("pods", "talker")
        assert following.status(60) == 0


def test_logs_of_the_run_before(space: Space) -> None:
    script = (
        'trap "exit 0" TERM; [ -e /box/mark ] || { touch /box/mark; echo first; exit 3; };'
        " echo second; sleep 1000000 & wait"
    )
    mounts = [{"name": "box", "mountPath": "/box"}]
    main = container("main", ("sh", "-c", script), volumeMounts=mounts)
    space.make("pods", pod("twice", main, volumes=[{"name": "box", "emptyDir": {}}]))
    space.until("pods", "twice", lambda one: restarts(one) == 1 and _runs(one), "the second run")
    assert space.logs("twice", "--previous") == "first\n"
    eventually(lambda: space.logs("twice") == "second\n", "the second run's line")


def _runs(one: Json) -> bool:
    return all("running" in status["state"] for status in one["status"]["containerStatuses"])


def test_exec_has_streams_and_an_exit_status(space: Space, shell: str) -> None:
    data = os.urandom(300_000).hex().encode()
    told = space.kubectl("exec", "-i", shell, "--", "cat", stdin=data)
    assert told.encode() == data
    with Running(space, "exec", shell, "--", "sh", "-c", "echo out; echo err >&2; exit 7") as one:
        assert "command terminated with exit code 7" in one.until("code 7")
        assert one.status() == 7
    assert space.kubectl("exec", shell, "--", "sh", "-c", "echo out; echo err >&2") == "out\n"


def test_exec_on_a_terminal(space: Space, shell: str) -> None:
    with Running(space, "exec", "-it", shell, "--", "sh", tty=True) as terminal:
        terminal.until("# ")
        terminal.send("tty; stty size\r")
        terminal.until("30 100\r\n")
        terminal.resize(40, 120)
        _sized(terminal, "40 120")
        script = 'trap "echo caught; exit" INT; echo as""leep; while :; do sleep 0.1; done'
        terminal.send(f"sh -c '{script}'\r")
        terminal.until("asleep\r\n")
        terminal.send("\x03")
        terminal.until("caught\r\n")
        terminal.until("# ")
        terminal.send("exit 5\r")
        assert terminal.status() == 5


def _sized(terminal: Running, size: str) -> None:
    """Wait until the shell's terminal has that size."""
    loop = f"while [ \"$(stty size)\" != '{size}' ]; do sleep 0.1; done"
    terminal.send(f"{loop}; echo is''sized\r")
    terminal.until("issized\r\n")


def test_attach(space: Space) -> None:
    script = 'while read line; do echo "got $line"; done; sleep 1000000'
    main = container("main", ("sh", "-c", script), stdin=True)
    space.make("pods", pod("listener", main))
    space.until_ready("listener")
    for word in ("hello", "again"):
        with Running(space, "attach", "-i", "listener") as attached:
            attached.send(f"{word}\n")
            attached.until(f"got {word}\n")
    eventually(lambda: space.logs("listener") == "got hello\ngot again\n", "both in the log")

    main = container("main", ("sh",), stdin=True, tty=True)
    space.make("pods", pod("console", main))
    space.until_ready("console")
    with Running(space, "attach", "-it", "console", tty=True) as terminal:
        terminal.send("echo on $(tty)\r")
        terminal.until("on /dev/")
        _sized(terminal, "30 100")  # kubectl sends another one before


def test_files_are_copied_both_ways(space: Space, shell: str, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    (there / "deep").mkdir(parents=True)
    (there / "deep/data").write_bytes(os.urandom(3_000_000))
    (there / "script").write_text("#!/bin/sh\necho it runs\n")
    (there / "script").chmod(0o755)
    space.kubectl("cp", str(there), f"{shell}:/tmp/there")
    assert space.exec(shell, "/tmp/there/script") == "it runs\n"
    space.kubectl("cp", f"{shell}:/tmp/there", str(back))
    assert (back / "deep/data").read_bytes() == (there / "deep/data").read_bytes()
    assert sorted(path.name for path in back.rglob("*")) == ["data", "deep", "script"]


def test_a_port_is_forwarded(space: Space) -> None:
    space.make("pods", pod("forwarded", web()))
    space.make("services", service("forwarded"))
    space.until_ready("forwarded")
    for target in ("pod/forwarded", "service/forwarded"):
        with Running(space, "port-forward", target, ":80") as forward:
            told = forward.until(" -> 80\n")
            port = re.search(r"127\.0\.0\.1:(\d+)", told)
            assert port, told
            url = f"http://127.0.0.1:{port[1]}/"
            page = partial(fetch, limit_s=10)  # eight at once: each waits for the others' too
            with ThreadPoolExecutor(8) as many:
                assert list(many.map(page, [url] * 16)) == ["forwarded v1\n"] * 16


def test_debug_sees_the_processes_of_its_target(space: Space) -> None:
    other = container("other", ("sleep", "2000002"))
    space.make("pods", pod("broken", container("main", ("sleep", "1000001")), other))
    before = space.until_ready("broken")
    script = "ps; ls /proc/1/root/bin/busybox; cat /proc/1/cmdline"
    space.kubectl(
        "debug", "broken", f"--image={BUSYBOX}", "--target=main", "--container=doctor",
        "--profile=general", "--image-pull-policy=IfNotPresent", "--", "sh", "-c", script,
    )  # fmt: skip
    space.until("pods", "broken", lambda one: "terminated" in _doctor(one), "the end of debug")
    seen = space.logs("broken", "--container=doctor")
    assert "sleep 1000001" in seen
    assert "sleep 2000002" not in seen
    assert "/proc/1/root/bin/busybox" in seen
    after = space.get("pods", "broken")
    assert restarts(after) == 0
    names = ("containerID", "restartCount")
    assert [[one[name] for name in names] for one in after["status"]["containerStatuses"]] == [
        [one[name] for name in names] for one in before["status"]["containerStatuses"]
    ]


def _doctor(one: Json) -> Json:
    statuses = one["status"].get("ephemeralContainerStatuses", ())
    found: Json = next((each["state"] for each in statuses), {})
    return found


def test_debug_of_the_node(cluster: Cluster, space: Space) -> None:
    script = "cat /host/proc/1/comm; ls /host/var/lib/criagent/state.db; hostname"
    told = space.kubectl(
        "debug", f"node/{cluster.node}", f"--image={BUSYBOX}", "--profile=general", "--",
        "sh", "-c", script,
    )  # fmt: skip
    name = re.search(r"node-debugger-[a-z0-9-]+", told)
    assert name, told
    space.until("pods", name[0], lambda one: one["status"]["phase"] == "Succeeded", "the end")
    node, database, host = space.logs(name[0]).splitlines()
    assert node == Path("/proc/1/comm").read_text().strip()
    assert database == "/host/var/lib/criagent/state.db"
    assert host == socket.gethostname()
