# SPDX-License-Identifier: Apache-2.0
"""Pods of gVisor: runsc as it was built, without a wrapper, as a handler of type runsc."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import api, container
from tests.support.pods import Pods
from tests.support.refusals import refused
from tests.support.stream_client import Command
from tests.support.waiting import until

pytestmark = pytest.mark.root

CONFIG = '[runtime.handlers.gvisor]\npath = "/opt/kubernetes/runsc"\ntype = "runsc"\n'
OWN = "null-netns"  # runsc makes it once and keeps it
Pod = tuple[str, api.PodSandboxConfig]


@pytest.fixture
def gvisor(pods: Pods) -> Iterator[Pods]:
    """An agent with the handler."""
    agent.stop()
    pods.cri.close()
    pods.cri = agent.start(CONFIG)
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    state = Path("/run/criagent/runtime/gvisor")
    left = {path.name for path in state.iterdir()} - {OWN}
    agent.stop()
    subprocess.run(["umount", state / OWN], check=False, capture_output=True)
    shutil.rmtree(state)
    agent.start().close()
    assert left == set()


def pod(pods: Pods) -> Pod:
    config = pods.config()
    return pods.cri.run(config, handler="gvisor"), config


def processes(container_id: str) -> list[int]:
    """Of runsc, from the container's cgroup."""
    (directory,) = Path("/sys/fs/cgroup").glob(f"**/{container_id}")
    return [int(pid) for pid in (directory / "cgroup.procs").read_text().split()]


def exec_url(pods: Pods, container_id: str, *command: str, tty: bool = False) -> str:
    request = api.ExecRequest(
        container_id=container_id, cmd=command, stdin=True, stdout=True, stderr=not tty, tty=tty
    )
    return str(pods.cri.runtime.Exec(request, timeout=20).url)


def test_a_container_runs_on_a_kernel_of_its_own(gvisor: Pods) -> None:
    """Version, log, exec, exit code, cgroup, and its end."""
    container_id = gvisor.running("sh", "-c", "echo hello; exec sleep 1000", pod=pod(gvisor))
    until(lambda: "hello\n" in gvisor.log(container_id), "the log")
    script = "cat /proc/version; echo no >&2; exit 7"
    answer = gvisor.cri.exec(container_id, "sh", "-c", script, timeout=20)
    assert answer.stdout.startswith(b"Linux version")
    assert answer.stdout != Path("/proc/version").read_bytes()
    assert (answer.stderr, answer.exit_code) == (b"no\n", 7)
    assert gvisor.cri.exec(container_id, "sh", "-c", "kill -9 $$", timeout=20).exit_code == 137
    running = processes(container_id)
    assert running
    gvisor.cri.stop(container_id)
    status = gvisor.cri.status(container_id)
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)
    assert [pid for pid in running if Path(f"/proc/{pid}").exists()] == []


def test_the_settings_of_a_pod_count_inside(gvisor: Pods) -> None:
    """Hostname and seccomp, which belong to the node's kernel with other handlers."""
    config = gvisor.config()
    config.hostname = "named"
    made = gvisor.cri.run(config, handler="gvisor"), config

    def confined(wanted: api.ContainerConfig) -> None:
        wanted.linux.security_context.seccomp.profile_type = api.SecurityProfile.RuntimeDefault

    container_id = gvisor.running("sleep", "1000", change=confined, pod=made)
    script = "hostname; grep ^Seccomp: /proc/self/status"
    answer = gvisor.cri.exec(container_id, "sh", "-c", script, timeout=20)
    assert answer.stdout == b"named\nSeccomp:\t2\n"


@pytest.mark.parametrize("code", [0, 7])
def test_an_exit_code_arrives(gvisor: Pods, code: int) -> None:
    container_id = gvisor.running("sh", "-c", f"exit {code}", pod=pod(gvisor))
    until(lambda: gvisor.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    assert gvisor.cri.status(container_id).exit_code == code


def test_a_stop_signal_reaches_the_first_process(gvisor: Pods) -> None:
    script = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    container_id = gvisor.running("sh", "-c", script, pod=pod(gvisor))
    until(lambda: "ready" in gvisor.log(container_id), "the trap")
    gvisor.cri.stop(container_id, grace=20)
    assert gvisor.cri.status(container_id).exit_code == 9
    assert gvisor.log(container_id).endswith("bye\n")


def test_a_command_beyond_its_limit_is_killed_inside(gvisor: Pods) -> None:
    container_id = gvisor.running("sleep", "1000", pod=pod(gvisor))
    request = api.ExecSyncRequest(container_id=container_id, cmd=["sleep", "4321"], timeout=1)
    refused(
        lambda: gvisor.cri.runtime.ExecSync(request, timeout=60),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "timed out after 1 s",
    )
    assert b"4321" not in gvisor.cri.exec(container_id, "ps", timeout=20).stdout
    kept = [path.name for path in Path("/run/criagent/containers", container_id).glob("exec-*")]
    assert kept == []


def test_containers_of_a_pod_share_its_network(gvisor: Pods) -> None:
    """By localhost, and from outside by its address and by port-forward's way into its netns."""
    both = pod(gvisor)
    gvisor.running("sh", "-c", "while :; do echo served | nc -l -p 8080; done", pod=both)
    client = gvisor.running("sleep", "1000", pod=both)

    def asked() -> bytes:
        command = ("sh", "-c", "nc -w 2 127.0.0.1 8080 < /dev/null")
        return bytes(gvisor.cri.exec(client, *command, timeout=20).stdout)

    until(lambda: asked() == b"served\n", "an answer", 20)
    address = gvisor.cri.pod_status(both[0]).network.ip

    def from_the_node() -> bool:
        try:
            with socket.create_connection((address, 8080), timeout=5) as connection:
                return connection.recv(100) == b"served\n"
        except OSError:
            return False

    until(from_the_node, "an answer to the node", 20)


def test_a_terminal_has_its_exit_code(gvisor: Pods) -> None:
    container_id = gvisor.running("sleep", "1000", pod=pod(gvisor))
    script = "stty size; read line; echo got $line; exit 3"
    url = exec_url(gvisor, container_id, "sh", "-c", script, tty=True)
    with Command(url, "stdin", "stdout", "resize") as session:
        session.send(session.streams["resize"], b'{"Width":91,"Height":37}')
        session.send(session.streams["stdin"], b"word\n")
        output, _, status = session.result()
    assert output.endswith(b"got word\r\n")
    assert status["details"]["causes"][0]["message"] == "3"


def test_the_agent_finds_them_again(gvisor: Pods) -> None:
    """After SIGKILL: the container runs, commands run, the exit is noticed."""
    container_id = gvisor.running("sleep", "1000", pod=pod(gvisor))
    before = processes(container_id)
    agent.kill()
    gvisor.cri.close()
    gvisor.cri = agent.start(CONFIG)
    assert gvisor.cri.status(container_id).state == api.CONTAINER_RUNNING
    assert set(before) <= set(processes(container_id))
    assert gvisor.cri.exec(container_id, "true", timeout=20).exit_code == 0
    gvisor.cri.stop(container_id)
    assert gvisor.cri.status(container_id).exit_code == 137


def test_a_killed_kernel_is_an_exit(gvisor: Pods) -> None:
    """As by the OOM killer of the node."""
    container_id = gvisor.running("sleep", "1000", pod=pod(gvisor))
    os.kill(
        int(Path("/run/criagent/containers", container_id, "pidfile").read_text()), signal.SIGKILL
    )
    until(lambda: gvisor.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    assert gvisor.cri.status(container_id).exit_code == 137


def test_statistics_count_the_kernel(gvisor: Pods) -> None:
    container_id = gvisor.running("sleep", "1000", pod=pod(gvisor))
    request = api.ContainerStatsRequest(container_id=container_id)
    stats = gvisor.cri.runtime.ContainerStats(request).stats
    assert stats.cpu.usage_core_nano_seconds.value > 0


def test_what_a_kernel_of_its_own_cannot_share_is_refused(gvisor: Pods) -> None:
    config = gvisor.config()
    config.linux.security_context.namespace_options.pid = api.NODE
    refused(
        lambda: gvisor.cri.run(config, handler="gvisor"),
        grpc.StatusCode.UNIMPLEMENTED,
        'runtime handler "gvisor" gives each container a kernel of its own',
    )
    made = pod(gvisor)
    first = gvisor.running("sleep", "1000", pod=made)
    debug = container("debug", ("true",))
    options = debug.linux.security_context.namespace_options
    options.pid, options.target_id = api.TARGET, first
    refused(
        lambda: gvisor.cri.create(made[0], debug, made[1]),
        grpc.StatusCode.UNIMPLEMENTED,
        "kubectl debug --target",
    )
