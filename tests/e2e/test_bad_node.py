# SPDX-License-Identifier: Apache-2.0
"""Nodes with something missing or broken: clear conditions and errors, and no container lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api, container, pod
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root


def condition(cri: Cri, kind: str = "RuntimeReady") -> api.RuntimeCondition:
    status = cri.runtime.Status(api.StatusRequest()).status
    return next(c for c in status.conditions if c.type == kind)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def serve(before: str, at: Path, config: str = "") -> subprocess.CompletedProcess[str]:
    """`serve` with directories below `at`, in a mount namespace of its own; it does not start."""
    file = at / "config.toml"
    file.write_text(
        f'[storage]\nroot = "{at}/root"\nrun_dir = "{at}/run"\nsocket = "{at}/run/a.sock"\n'
        f'[telemetry]\nmetrics_address = ""\n{config}'
    )
    script = f'{before}\nexec "$0" -m criagent --config "$1" serve'
    command = ["unshare", "--mount", "sh", "-e", "-c", script, sys.executable, str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("before", "part"),
    [
        ("umount /sys/fs/cgroup", "unified_cgroup_hierarchy=1"),
        ("umount /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup", "is not cgroup v2"),
        ("mkdir AT/root; mount -t tmpfs -o ro none AT/root", "Read-only file system"),
        ("mkdir AT/root; mount -t tmpfs -o size=8k none AT/root", "make room on its disk"),
    ],
)
def test_a_node_that_can_run_nothing_is_said_so_in_one_line(
    before: str, part: str, tmp_path: Path
) -> None:
    done = serve(before.replace("AT", str(tmp_path)), tmp_path)
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (reason,) = [event["error"] for event in events if event["event"] == "not_started"]
    assert part in reason


@pytest.fixture
def programs(pods: Pods) -> Iterator[Pods]:
    """A test may restart the agent with programs of its own; afterwards it has the usual ones."""
    yield pods
    agent.stop()
    pods.cri = agent.start()
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ('handlers.crun = { path = "/nowhere/crun" }', "/nowhere/crun cannot be run"),
        ('handlers.crun = { path = "AT/old" }', "crun 1.2.0 is too old"),
        ('conmon = "/nowhere/conmon"', "/nowhere/conmon cannot be run"),
        ('conmon = "AT/old"', "conmon 1.2.0 is too old"),
    ],
)
def test_a_missing_or_old_program_makes_the_node_not_ready(
    programs: Pods, config: str, part: str, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho crun version 1.2; echo conmon version 1.2\n")
    old.chmod(0o755)
    sandbox, spec = programs.sandbox()
    container_id = programs.running(pod=(sandbox, spec))
    started = programs.cri.status(container_id).started_at
    agent.stop()
    programs.cri = agent.start("[runtime]\n" + config.replace("AT", str(tmp_path)) + "\n")
    found = condition(programs.cri)
    assert (found.status, found.reason) == (False, "ProgramNotUsable")
    assert part in found.message
    assert "install" in found.message
    for call in (
        programs.sandbox,
        lambda: programs.cri.create(sandbox, container("late", ["sleep", "1"]), spec),
    ):
        code, text = refused(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert part in text
    # What ran goes on, is seen, and can be ended.
    assert programs.cri.status(container_id).state == api.CONTAINER_RUNNING
    assert programs.cri.status(container_id).started_at == started
    programs.cri.stop(container_id)
    assert programs.cri.status(container_id).state == api.CONTAINER_EXITED


@pytest.mark.parametrize("key", ["handlers.crun", "conmon"])
def test_a_program_that_goes_while_the_agent_runs_makes_the_node_not_ready(
    programs: Pods, key: str, tmp_path: Path
) -> None:
    program = tmp_path / key.rpartition(".")[2]
    program.symlink_to(f"/usr/bin/{program.name}")
    value = f'{{ path = "{program}" }}' if "." in key else f'"{program}"'
    agent.stop()
    programs.cri = agent.start(f"[runtime]\n{key} = {value}\n")
    assert condition(programs.cri).status
    program.unlink()
    found = condition(programs.cri)
    assert (found.status, found.reason) == (False, "ProgramNotUsable")
    assert f"{program} can no longer be executed; install it again" in found.message
    code, text = refused(programs.sandbox)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert str(program) in text
    program.symlink_to(f"/usr/bin/{program.name}")
    assert condition(programs.cri).status


def test_crun_without_dbus_says_what_to_do(programs: Pods) -> None:
    agent.stop()
    programs.cri = agent.start('[runtime]\ncgroup_driver = "systemd"\n')
    sandbox, spec = programs.sandbox(lambda c: c.linux.__setattr__("cgroup_parent", "test.slice"))
    code, text = refused(
        lambda: programs.cri.create(sandbox, container("a", ["sleep", "1"]), spec),
    )
    assert code is grpc.StatusCode.INTERNAL
    assert "systemctl start dbus" in text
    assert "runc" in text
    assert programs.cri.containers() == []


def test_the_agent_starts_on_a_full_disk_and_finds_its_containers(
    pods: Pods, tmp_path: Path
) -> None:
    root = Path("/mnt/full")
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "full", root], check=True)
    agent.stop()
    config = f'[storage]\nroot = "{root}/root"\n'
    try:
        pods.cri = agent.start(config)
        pods.cri.pull(BUSYBOX)
        container_id = pods.running()
        started = pods.cri.status(container_id).started_at
        agent.kill()
        _fill(root / "filler")
        pods.cri = agent.start(config)
        assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING
        assert pods.cri.status(container_id).started_at == started
        code, text = refused(pods.sandbox)
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, text
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        assert pods.cri.containers() == []
    finally:
        agent.stop()
        subprocess.run(["umount", "-R", root], check=True)
        root.rmdir()
        pods.cri = agent.start()


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def test_a_broken_cni_configuration_harms_no_pod_and_is_seen_mended_at_once(pods: Pods) -> None:
    file = Path("/etc/cni/net.d/10-mended.conflist")
    file.parent.mkdir(parents=True, exist_ok=True)
    good = json.dumps(
        {
            "cniVersion": "1.0.0",
            "name": "mended",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni-mended",
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": "10.78.0.0/24"}]],
                        "dataDir": "/run/cni-mended",
                    },
                }
            ],
        }
    )
    file.write_text(good)
    agent.stop()
    pods.cri = agent.start('[network]\nbackend = "cni"\n')
    try:
        sandbox, spec = pods.sandbox()
        container_id = pods.running(pod=(sandbox, spec))
        file.write_text(good[:-20])
        assert not condition(pods.cri, "NetworkReady").status
        assert str(file) in condition(pods.cri, "NetworkReady").message
        _, text = refused(pods.sandbox)
        assert str(file) in text
        assert pods.cri.exec(container_id, "true").exit_code == 0
        file.write_text(good)
        until(lambda: condition(pods.cri, "NetworkReady").status, "readiness", 1)
        other, _ = pods.sandbox()
        assert pods.cri.pod_status(other).network.ip.startswith("10.78.0.")
        assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING
    finally:
        for left in pods.cri.pods():
            pods.cri.remove_pod(left.id)
        agent.stop()
        file.unlink()
        subprocess.run(["ip", "link", "del", "cni-mended"], check=True)
        subprocess.run(["rm", "-rf", "/run/cni-mended"], check=True)
        pods.cri = agent.start()


@pytest.fixture
def shifted(pods: Pods, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An agent whose wall clock is off by the seconds in this file, which a test may change."""
    library, file = tmp_path / "clock.so", tmp_path / "offset"
    source = Path(__file__).parents[1] / "nodes/chroot/clock_offset.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    file.write_text("0")
    agent.stop()
    with monkeypatch.context() as patched:
        patched.setenv("LD_PRELOAD", str(library))
        patched.setenv("CLOCK_OFFSET", str(file))
        started = agent.start()
    pods.cri = started
    yield file
    agent.stop()
    pods.cri = agent.start()


@pytest.mark.parametrize("jump", [-86400, 86400])
def test_a_clock_that_jumps_changes_no_order_and_no_grace_period(
    shifted: Path, pods: Pods, jump: int
) -> None:
    stubborn = pods.running("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    first = pods.running()
    begin = time.monotonic()
    request = api.StopContainerRequest(container_id=stubborn, timeout=3)
    stopping = pods.cri.runtime.StopContainer.future(request, timeout=60)
    until(lambda: f'"{stubborn}"' in _stops(), "the stop")
    shifted.write_text(str(jump))
    second = pods.running()
    stopping.result()
    took = time.monotonic() - begin
    assert 2.9 <= took <= 30
    assert pods.cri.status(stubborn).exit_code == 137
    created = {container_id.id: container_id.created_at for container_id in pods.cri.containers()}
    assert created[stubborn] < created[first] < created[second]
    status = pods.cri.status(second)
    assert status.created_at < status.started_at
    pods.cri.stop(second)
    status = pods.cri.status(second)
    assert status.finished_at > status.started_at
    sandboxes = [pods.cri.pod_status(sandbox.id) for sandbox in pods.cri.pods()]
    assert len({sandbox.created_at for sandbox in sandboxes}) == 3


def _stops() -> str:
    text = agent.LOG.read_text()
    return "\n".join(line for line in text.splitlines() if "container_stopping" in line)


def test_a_changed_hostname_is_for_new_host_network_pods_alone(pods: Pods) -> None:
    def host_network(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.network = api.NODE

    def named(container_id: str) -> tuple[str, str, str]:
        script = "hostname; cat /etc/hostname; echo $HOSTNAME"
        name, file, variable = (
            pods.cri.exec(container_id, "sh", "-c", script).stdout.decode().split()
        )
        return name, file, variable

    old = os.uname().nodename
    own = pods.running(pod=pods.sandbox(lambda c: c.__setattr__("hostname", "mine")))
    shared = pods.running(pod=pods.sandbox(host_network))
    assert named(shared) == (old, old, old)
    subprocess.run(["hostname", "renamed"], check=True)
    try:
        assert named(own) == ("mine", "mine", "mine")
        # The UTS namespace is the node's; file and variable are of the container's creation.
        assert named(shared) == ("renamed", old, old)
        assert named(pods.running(pod=pods.sandbox(host_network))) == ("renamed",) * 3
        agent.kill()
        pods.cri = agent.start()
        assert named(own) == ("mine", "mine", "mine")
        assert pods.cri.status(shared).state == api.CONTAINER_RUNNING
    finally:
        subprocess.run(["hostname", old], check=True)


class Load:
    """Pods made and removed in threads, by an agent that dies under them all the time."""

    def __init__(self, logs: Path, first: int) -> None:
        self._logs = logs
        self._number = first
        self.kept: dict[str, api.PodSandboxConfig] = {}  # by container id
        self.rounds = 0

    def run(self, stopped: threading.Event) -> None:
        """Until told to end; every third pod is kept."""
        cri = Cri()
        while not stopped.is_set():
            self._number += 1
            spec = pod(f"load-{self._number}", log_directory=str(self._logs))
            work = container("main", ["sleep", "100000"])
            sandbox = self._again(partial(cri.run, spec))
            container_id = self._again(partial(cri.create, sandbox, work, spec))
            self._again(partial(cri.start, container_id))
            if self.rounds % 3:
                self._again(partial(cri.stop_pod, sandbox))
                self._again(partial(cri.remove_pod, sandbox))
            else:
                self.kept[container_id] = spec
            self.rounds += 1
        cri.close()

    def _again(self, call: Callable[[], object]) -> str:
        """As the kubelet does: the same call until it succeeds."""
        while True:
            try:
                return str(call())
            except grpc.RpcError as failed:
                # CANCELLED and UNKNOWN are what a connection that breaks can look like
                assert failed.code() in {
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.UNKNOWN,
                }, failed.details()


@pytest.mark.timeout(300)
def test_an_agent_that_is_killed_again_and_again_under_load_loses_nothing(pods: Pods) -> None:
    before = {
        container_id: _pid(pods.cri, container_id)
        for container_id in (pods.running() for _ in range(5))
    }
    stopped, loads = threading.Event(), [Load(pods.logs, 1000 * n) for n in (1, 2, 3)]
    threads = [threading.Thread(target=load.run, args=(stopped,)) for load in loads]
    for thread in threads:
        thread.start()
    try:
        for killed in range(8):
            goal = sum(load.rounds for load in loads) + 2
            until(lambda goal=goal: sum(x.rounds for x in loads) >= goal, f"load {killed}", 60)
            agent.kill()
            agent.start().close()
    finally:
        stopped.set()
        for thread in threads:
            thread.join(60)
    pods.cri = Cri()
    for container_id, pid in before.items():
        assert _pid(pods.cri, container_id) == pid
    kept = {container_id: spec for load in loads for container_id, spec in load.kept.items()}
    assert len(kept) > 3
    listed = {container_id.id: container_id for container_id in pods.cri.containers()}
    assert set(listed) == {*before, *kept}
    assert {container_id.state for container_id in listed.values()} == {api.CONTAINER_RUNNING}
    assert {container_id.metadata.attempt for container_id in listed.values()} == {0}
    assert len(pods.cri.pods()) == len(listed)


def _pid(cri: Cri, container_id: str) -> int:
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    return int(json.loads(cri.runtime.ContainerStatus(request).info["info"])["pid"])
