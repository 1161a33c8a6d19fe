# SPDX-License-Identifier: Apache-2.0
# vm: seconds=350
"""The unit: whatever happens to the service, to systemd and to its bus, containers run on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import grpc
import pytest

from tests.support.cri_client import Cri, api
from tests.support.units import container_units, kill_agent, main_pid, show, systemctl
from tests.support.vm_fixtures import VmPods, cgroup_of, scope_of, sleeper
from tests.support.waiting import until

_BUS = ("dbus.socket", "dbus.service")


def _restarted() -> None:
    systemctl("restart", "criagent")


def _stopped_and_started() -> None:
    systemctl("stop", "criagent")
    assert show("criagent", "Result") == "success"
    systemctl("start", "criagent")


def _killed() -> None:
    gone = kill_agent()
    until(
        lambda: main_pid("criagent") not in {0, gone} and show("criagent", "SubState") == "running",
        "the next agent",
        120,
    )


def _reexecuted() -> None:
    systemctl("daemon-reexec")
    systemctl("restart", "criagent")


@pytest.mark.parametrize("change", [_restarted, _stopped_and_started, _killed, _reexecuted])
def test_containers_survive_their_agent(pods: VmPods, change: Callable[[], None]) -> None:
    sandbox = pods.sandbox()
    writer = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"
    container_id = pods.created(sleeper("writer", "sh", "-c", writer), sandbox)
    ending = pods.created(
        sleeper("ending", "sh", "-c", "read x < /proc/self/stat; exec cat"), sandbox
    )
    scope, cgroup = scope_of(pods.cri, container_id), cgroup_of(pods.cri, container_id)
    init = (cgroup / "cgroup.procs").read_text().split()[0]
    lines = len(pods.log(container_id).splitlines())
    change()
    after = Cri()
    assert after.status(container_id).state == api.CONTAINER_RUNNING
    assert after.pod_status(sandbox[0]).state == api.SANDBOX_READY
    assert init in (cgroup / "cgroup.procs").read_text().split()
    assert show(scope.name, "ActiveState") == "active"
    pods.cri.close()
    pods.cri = after
    until(lambda: len(pods.log(container_id).splitlines()) > lines, "more output", 60)
    assert after.exec(container_id, "echo", "there", timeout=60).stdout == b"there\n"
    until(lambda: after.status(ending).state == api.CONTAINER_EXITED, "the other's end", 60)
    after.stop(container_id)
    assert after.status(container_id).exit_code == 137
    until(lambda: not cgroup.exists(), "the end of its scope", 60)


def test_an_exit_while_no_agent_runs_keeps_its_code(pods: VmPods, tmp_path: Path) -> None:
    wanted = sleeper("waiter", "sh", "-c", "while ! [ -e /box/go ]; do sleep 0.1; done; exit 9")
    wanted.mounts.add(host_path=str(tmp_path), container_path="/box")
    container_id = pods.created(wanted)
    cgroup = cgroup_of(pods.cri, container_id)
    systemctl("stop", "criagent")
    (tmp_path / "go").touch()
    until(lambda: not cgroup.exists(), "the exit", 60)
    systemctl("start", "criagent")
    pods.cri.close()
    pods.cri = Cri()
    status = pods.cri.status(container_id)
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 9)


def _creating(pods: VmPods, stop: Event, made: list[str], errors: list[str]) -> None:
    """Create containers until told to stop; note those that were created and started."""
    cri = Cri()
    sandbox, config = pods.sandbox()
    number = 0
    while not stop.is_set():
        number += 1
        try:
            container_id = cri.create(sandbox, sleeper(f"c{number}"), config, timeout=120)
            cri.start(container_id)
            made.append(container_id)
        except grpc.RpcError as error:
            errors.append(f"{error.code().name}: {error.details()}")
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                grpc.channel_ready_future(cri.channel).result(timeout=120)
    cri.close()


@pytest.mark.parametrize(
    "disturb",
    [("daemon-reload",), ("restart", "dbus.service"), ("kill", "--signal=KILL", "criagent")],
    ids=["daemon-reload", "restart-dbus", "kill-agent"],
)
def test_no_container_is_lost_when_it_happens_amid_creates(
    pods: VmPods, disturb: tuple[str, ...]
) -> None:
    stop, made, errors = Event(), list[str](), list[str]()
    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(_creating, pods, stop, made, errors) for _ in range(2)]
        try:
            for round_ in range(4):
                until(
                    lambda n=round_: len(made) > 2 * n,
                    "containers in between",
                    200,
                )
                systemctl(*disturb)
        finally:
            stop.set()
        for worker in workers:
            worker.result(timeout=300)
    until(lambda: show("criagent", "SubState") == "running", "the agent", 120)
    cri = Cri()
    states = {one.id: one.state for one in cri.containers()}
    cri.close()
    print(f"{len(made)} made, errors: {sorted(set(errors))}")
    assert [
        container_id for container_id in made if states.get(container_id) != api.CONTAINER_RUNNING
    ] == []
    # What failed has left nothing: each scope is a container's that the agent knows.
    known = {f"cri-{container_id}.scope" for container_id in states}
    assert set(container_units()) <= known
    if disturb[0] == "daemon-reload":
        assert errors == []


@pytest.fixture
def no_bus() -> object:
    """Stop the system bus for a test."""
    for unit in _BUS:
        subprocess.run(["systemctl", "stop", unit], check=True, capture_output=True)
    yield
    for unit in _BUS:
        subprocess.run(["systemctl", "start", unit], check=True, capture_output=True)


def test_without_the_bus_crun_says_so_and_what_runs_runs_on(pods: VmPods, no_bus: object) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        pods.created(sleeper())
    assert "systemctl start dbus.socket" in (caught.value.details() or "")


def test_the_service_is_ready_only_when_it_serves(cri: Cri) -> None:
    systemctl("restart", "criagent")
    fresh = Cri()
    fresh.runtime.Version(api.VersionRequest(), timeout=5)
    fresh.close()
    assert show("criagent", "OOMScoreAdjust") == "-999"
    pid = main_pid("criagent")
    assert Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "-999"
