# SPDX-License-Identifier: Apache-2.0
# vm: seconds=700
"""A node with systemd that things happen to: its clock, its name, its disk, its bus, its agent."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.units import container_units, main_pid, show, systemctl
from tests.support.vm_fixtures import VmPods, cgroup_of, sleeper
from tests.support.waiting import until

HOUR = 3600
ROOT = Path("/var/lib/criagent")
BUS = ("dbus.socket", "dbus.service")


def refused(pods: VmPods) -> tuple[grpc.StatusCode, str]:
    """What the creation of a pod with a container is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        pods.created(sleeper())
    return caught.value.code(), str(caught.value.details())


def journal(unit: str = "criagent") -> str:
    command = ["journalctl", "--unit", unit, "--no-pager", "--output=cat"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def running(pattern: str) -> bool:
    """Whether a process has `pattern` in its command line."""
    done = subprocess.run(["pgrep", "-f", pattern], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def jumps() -> Iterator[list[float]]:
    """Afterwards the clock is right again."""
    wall, steady = time.time(), time.monotonic()
    yield []
    set_clock(wall + time.monotonic() - steady)


def set_clock(to: float) -> None:
    subprocess.run(["date", "--set", f"@{to:.3f}"], check=True, capture_output=True)


@pytest.mark.usefixtures("jumps")
def test_a_clock_that_jumps_changes_no_grace_period_no_time_out_and_no_order(pods: VmPods) -> None:
    events: list[api.ContainerEventResponse] = []
    stream = pods.cri.runtime.GetContainerEvents(api.GetEventsRequest())
    follower = threading.Thread(target=partial(_follow, stream, events))
    follower.start()
    target = pods.created(sleeper("target"))
    made = [target]
    for number, jump in enumerate((6 * HOUR, -12 * HOUR)):
        stubborn = sleeper("stubborn", "sh", "-c", "trap '' TERM; while :; do sleep 1; done")
        stopped = pods.created(stubborn)
        made.append(stopped)
        begin = time.monotonic()
        stop = pods.cri.runtime.StopContainer.future(
            api.StopContainerRequest(container_id=stopped, timeout=15), timeout=120
        )
        command = ["sleep", f"4321{number}"]
        asked = api.ExecSyncRequest(container_id=target, cmd=command, timeout=15)
        executed = pods.cri.runtime.ExecSync.future(asked, timeout=120)
        until(lambda number=number: running(f"^sleep 4321{number}"), "the exec", 60)
        until(lambda container_id=stopped: container_id in _stopping(), "the stop", 60)
        set_clock(time.time() + jump)
        made.append(pods.created(sleeper("after")))
        assert executed.exception(timeout=120).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert 15 <= time.monotonic() - begin <= 90
        stop.result(timeout=120)
        assert 15 <= time.monotonic() - begin <= 90
        assert not running(f"^sleep 4321{number}")
        assert pods.cri.status(stopped).exit_code == 137
        now = time.time_ns()
        told = pods.cri.runtime.ContainerStats(api.ContainerStatsRequest(container_id=target)).stats
        assert now <= told.cpu.timestamp <= time.time_ns()
        assert told.cpu.usage_nano_cores.value < 10**10
    assert [
        container_id.id
        for container_id in sorted(
            pods.cri.containers(), key=lambda container_id: container_id.created_at
        )
    ] == made
    for container_id in made:
        pods.cri.stop(container_id)
        status = pods.cri.status(container_id)
        assert status.created_at < status.started_at < status.finished_at
    until(lambda: _ended(events) == set(made), "all events", 60)
    stream.cancel()
    follower.join(60)
    times = [event.created_at for event in events]
    assert times == sorted(times)
    systemctl("restart", "criagent")  # it knows the times of before
    pods.cri.close()
    pods.cri = Cri()
    made.append(pods.created(sleeper("last")))
    assert [
        container_id.id
        for container_id in sorted(
            pods.cri.containers(), key=lambda container_id: container_id.created_at
        )
    ] == made


def _follow(stream: object, events: list[api.ContainerEventResponse]) -> None:
    try:
        events.extend(stream)  # type: ignore[arg-type]
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.CANCELLED


def _stopping() -> str:
    return "\n".join(line for line in journal().splitlines() if "container_stopping" in line)


def _ended(events: list[api.ContainerEventResponse]) -> set[str]:
    stopped = api.ContainerEventType.CONTAINER_STOPPED_EVENT
    return {event.container_id for event in list(events) if event.container_event_type == stopped}


def test_a_changed_hostname_disturbs_no_pod(pods: VmPods) -> None:
    old = os.uname().nodename
    container_id = pods.created(sleeper())
    inside = pods.cri.exec(container_id, "hostname", timeout=60).stdout
    subprocess.run(["hostnamectl", "set-hostname", "renamed"], check=True)
    try:
        assert os.uname().nodename == "renamed"
        assert pods.cri.exec(container_id, "hostname", timeout=60).stdout == inside
        sandbox = pods.sandbox()
        other = pods.created(sleeper(), sandbox)
        assert pods.cri.exec(other, "hostname", timeout=60).exit_code == 0
        systemctl("restart", "criagent")
        pods.cri.close()
        pods.cri = Cri()
        assert pods.cri.exec(container_id, "hostname", timeout=60).stdout == inside
        assert pods.cri.pod_status(sandbox[0]).state == api.SANDBOX_READY
        pods.created(sleeper())
    finally:
        subprocess.run(["hostnamectl", "set-hostname", old], check=True)
        systemctl("stop", "systemd-hostnamed")  # it stays for a while, with mounts of its own


@pytest.fixture
def small_disk(cri: Cri, pods: VmPods) -> Iterator[VmPods]:
    """An agent whose root directory is on a disk of 128 MB of its own."""
    image = Path("/var/tmp/small.img")
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    systemctl("stop", "criagent")
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, ROOT], check=True)
    systemctl("start", "criagent")
    pods.cri.close()
    pods.cri = Cri()
    pods.cri.pull(BUSYBOX, timeout=300)
    yield pods
    with_fresh = Cri()
    for sandbox in with_fresh.pods():
        with_fresh.remove_pod(sandbox.id)
    with_fresh.close()
    systemctl("stop", "criagent")
    subprocess.run(["umount", ROOT], check=True)
    image.unlink()
    systemctl("start", "criagent")


def test_a_full_disk_refuses_pods_lets_others_end_and_is_overcome(small_disk: VmPods) -> None:
    pods = small_disk
    first, second = pods.created(sleeper()), pods.created(sleeper())
    filler = ROOT / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], check=False)
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}.2", "bs=1k"], check=False)
    code, text = refused(pods)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, text
    assert pods.cri.exec(first, "true", timeout=60).exit_code == 0
    pods.cri.stop(first)
    assert pods.cri.status(first).state == api.CONTAINER_EXITED
    pods.cri.remove(first)
    _kill()
    fresh = _served()
    assert [container_id.id for container_id in fresh.containers()] == [second]
    assert fresh.status(second).state == api.CONTAINER_RUNNING
    for path in ROOT.glob("filler*"):
        path.unlink()
    pods.cri.close()
    pods.cri = fresh
    assert pods.cri.exec(pods.created(sleeper()), "true", timeout=60).exit_code == 0


def test_a_root_directory_that_has_become_read_only_is_said_in_one_line(
    small_disk: VmPods,
) -> None:
    pods = small_disk
    container_id = pods.created(sleeper())
    cgroup = cgroup_of(pods.cri, container_id)
    started = pods.cri.status(container_id).started_at
    systemctl("stop", "criagent")
    subprocess.run(["mount", "-o", "remount,ro", ROOT], check=True)
    try:
        done = subprocess.run(["systemctl", "start", "criagent"], check=False, capture_output=True)
        assert done.returncode != 0
        lines = [line for line in journal().splitlines() if '"not_started"' in line]
        assert "Read-only file system" in lines[-1]
        assert str(ROOT) in lines[-1]
        assert "Traceback" not in journal()
        assert "populated 1" in (cgroup / "cgroup.events").read_text()
    finally:
        subprocess.run(["mount", "-o", "remount,rw", ROOT], check=True)
    pods.cri.close()
    pods.cri = _served()  # systemd tries again and again
    assert pods.cri.status(container_id).started_at == started
    assert pods.cri.exec(container_id, "true", timeout=60).exit_code == 0


def test_a_disk_that_fails_is_said_and_nothing_hangs(small_disk: VmPods) -> None:
    """As of a disk error: the kernel aborts the journal, and lets nobody write any more."""
    pods = small_disk
    container_id = pods.created(sleeper())
    cgroup = cgroup_of(pods.cri, container_id)
    command = ["findmnt", "--noheadings", "--output=SOURCE", ROOT]
    device = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # type: ignore[arg-type]
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")
    code, text = refused(pods)
    assert code is grpc.StatusCode.UNAVAILABLE, text
    assert "check dmesg" in text
    status = pods.cri.runtime.Status(api.StatusRequest()).status
    ready = next(found for found in status.conditions if found.type == "RuntimeReady")
    assert (ready.status, ready.reason, "check dmesg" in ready.message) == (
        False,
        "StorageFailing",
        True,
    )
    with pytest.raises(grpc.RpcError) as caught:  # it cannot be written down
        pods.cri.stop(container_id)
    assert "check dmesg" in (caught.value.details() or "")
    until(lambda: not cgroup.exists(), "the end of the container", 60)
    # What an administrator does, or a reboot.
    systemctl("stop", "criagent")
    for line in Path("/proc/mounts").read_text().splitlines():
        if "/run/criagent/containers/" in line:
            subprocess.run(["umount", line.split()[1]], check=True)
    subprocess.run(["umount", ROOT], check=True)
    image = Path("/var/tmp/small.img")
    assert subprocess.run(["e2fsck", "-fy", image], check=False, capture_output=True).returncode < 4
    subprocess.run(["mount", "-o", "loop", image, ROOT], check=True)
    systemctl("start", "criagent")
    pods.cri.close()
    pods.cri = Cri()
    status = pods.cri.status(container_id)
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)
    assert pods.cri.exec(pods.created(sleeper()), "true", timeout=60).exit_code == 0


def _kill() -> None:
    """Kill everything in the unit; returns when systemd has started it anew."""
    gone = show("criagent", "InvocationID")
    systemctl("kill", "--signal=KILL", "criagent")
    until(
        lambda: show("criagent", "InvocationID") != gone and main_pid("criagent") != 0,
        "the next start",
        120,
    )


def _served() -> Cri:
    """A client, once the unit runs."""
    until(lambda: show("criagent", "SubState") == "running", "the agent", 120)
    return Cri()


def test_a_bus_that_goes_and_comes_back_needs_no_restart(pods: VmPods) -> None:
    sandbox = pods.sandbox()
    container_id, other = pods.created(sleeper("a"), sandbox), pods.created(sleeper("b"), sandbox)
    agent = main_pid("criagent")
    for unit in BUS:
        systemctl("stop", unit)
    try:
        code, text = refused(pods)
        assert code is grpc.StatusCode.INTERNAL
        assert "systemctl start dbus.socket" in text
        assert pods.cri.exec(container_id, "echo", "hi", timeout=60).stdout == b"hi\n"
        cgroup = cgroup_of(pods.cri, other)
        pods.cri.stop(other)
        assert pods.cri.status(other).exit_code == 137
        pods.cri.remove(other)
        assert not cgroup.exists()
        assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING
        # runc asks systemd itself, on a socket of its own.
        alone = pods.created(sleeper("alone"), pods.of_handler("runc"))
        assert cgroup_of(pods.cri, alone).name == f"cri-{alone}.scope"
        assert pods.cri.exec(alone, "true", timeout=60).exit_code == 0
    finally:
        for unit in BUS:
            systemctl("start", unit)
    assert pods.cri.exec(pods.created(sleeper()), "true", timeout=60).exit_code == 0
    assert main_pid("criagent") == agent


class Load:
    """Pods made and removed in a thread, by an agent that dies under them all the time."""

    def __init__(self, pods: VmPods) -> None:
        self.pods = pods
        self.kept: list[str] = []  # container ids
        self.rounds = 0
        self.failures: list[str] = []

    def run(self, stopped: threading.Event) -> None:
        """Until told to end; every second pod is kept."""
        while not stopped.is_set():
            spec, work = self.pods.config(), sleeper("main")
            sandbox = self._again(lambda cri, spec=spec: cri.run(spec))
            container_id = self._again(
                lambda cri, sandbox=sandbox, spec=spec, work=work: cri.create(
                    sandbox, work, spec, timeout=120
                )
            )
            self._again(lambda cri, container_id=container_id: cri.start(container_id))
            if self.rounds % 2:
                self._again(lambda cri, sandbox=sandbox: cri.stop_pod(sandbox))
                self._again(lambda cri, sandbox=sandbox: cri.remove_pod(sandbox))
            else:
                self.kept.append(container_id)
            self.rounds += 1

    def _again(self, call: object) -> str:
        """As the kubelet does: the same call until it succeeds, on a connection that works."""
        while True:
            cri = Cri()
            try:
                return str(call(cri))  # type: ignore[operator]
            except grpc.RpcError as failed:
                # CANCELLED and UNKNOWN are what a connection that breaks can look like
                if failed.code() not in {
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.UNKNOWN,
                }:
                    self.failures.append(f"{failed.code().name}: {failed.details()}")
                    raise
            finally:
                cri.close()


def test_an_agent_killed_for_a_minute_under_load_loses_nothing(pods: VmPods) -> None:
    """Everything in its unit is killed, as soon as it serves and again while it starts."""
    before = {
        container_id: cgroup_of(pods.cri, container_id)
        for container_id in (pods.created(sleeper()) for _ in range(3))
    }
    stopped, load = threading.Event(), Load(pods)
    thread = threading.Thread(target=load.run, args=(stopped,))
    thread.start()
    end, kills = time.monotonic() + 60, 0
    try:
        while time.monotonic() < end or kills < 8:
            goal = load.rounds + 1
            until(lambda goal=goal: load.rounds >= goal or load.failures, "load", 240)
            for _ in range(2):
                _kill()
                kills += 1
    finally:
        stopped.set()
        thread.join(300)
    cri = _served()
    print(f"{kills} kills, {load.rounds} pods, {len(load.kept)} kept")
    assert load.failures == []
    for cgroup in before.values():
        assert "populated 1" in (cgroup / "cgroup.events").read_text()
    states = {container_id.id: container_id.state for container_id in cri.containers()}
    assert states == dict.fromkeys([*before, *load.kept], api.CONTAINER_RUNNING)
    assert len(cri.pods()) == len(states)
    wanted = {f"cri-{container_id}.scope" for container_id in states}
    until(lambda: set(container_units()) == wanted, "scopes of these alone", 60)
    cri.close()
