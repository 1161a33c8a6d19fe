# SPDX-License-Identifier: Apache-2.0
"""The agent ends and comes back; containers do not notice."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri, api, container
from tests.support.node_state import monitor_pid
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

COUNT = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"


def restart(how: str) -> Cri:
    """End the agent by SIGTERM or SIGKILL and start it again."""
    agent.kill() if how == "kill" else agent.stop()
    return agent.start()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_running_container_is_found_again_and_its_log_goes_on(pods: Pods, how: str) -> None:
    container_id = pods.running("sh", "-c", COUNT)
    before = pods.cri.status(container_id)
    pods.cri = restart(how)
    after = pods.cri.status(container_id)
    assert after.state == api.CONTAINER_RUNNING
    assert after.started_at == before.started_at
    lines = len(pods.log(container_id).splitlines())
    until(lambda: len(pods.log(container_id).splitlines()) > lines + 5, "more output")
    numbers = [int(line.split()[1]) for line in pods.log(container_id).splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert pods.cri.exec(container_id, "echo", "hello").stdout == b"hello\n"


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("exit 0", 0)])
def test_exit_while_the_agent_is_down_has_its_code(pods: Pods, command: str, code: int) -> None:
    script = f"while [ ! -e /tmp/go ]; do sleep 0.02; done; {command}"
    change = {"host": str(pods.logs)}
    container_id = pods.running(
        "sh",
        "-c",
        script.replace("/tmp/go", "/host/go"),
        change=lambda c: c.mounts.add(container_path="/host", host_path=change["host"]),
    )
    pid = init_pid(pods.cri, container_id)
    agent.kill()
    (pods.logs / "go").touch()
    until(lambda: not Path(f"/proc/{pid}").exists(), "the exit")
    until(lambda: Path(f"/run/criagent/exits/{container_id}").exists(), "the exit file")
    pods.cri = agent.start()
    status = pods.cri.status(container_id)
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, code)
    assert status.reason == ("Completed" if code == 0 else "Error")
    assert status.finished_at > status.started_at


def test_a_stop_goes_on_after_a_restart(pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    request = api.StopContainerRequest(container_id=container_id, timeout=3)
    waiting = pods.cri.runtime.StopContainer.future(request, timeout=30)
    until(
        lambda: any(
            container_id in line and "container_stopping" in line
            for line in agent.LOG.read_text().splitlines()
        ),
        "the stop",
    )
    agent.kill()
    waiting.exception()
    pods.cri = agent.start()
    until(
        lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED,
        "SIGKILL at the deadline",
    )
    assert pods.cri.status(container_id).exit_code == 137


def test_a_container_without_its_monitor_is_stopped(pods: Pods) -> None:
    container_id = pods.running()
    pid = init_pid(pods.cri, container_id)
    os.kill(monitor_pid(container_id), signal.SIGKILL)
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the stop")
    status = pods.cri.status(container_id)
    assert (status.reason, status.exit_code) == ("ContainerMonitorLost", 255)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of its process")


def test_a_sandbox_whose_namespaces_are_gone_is_not_ready(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    agent.stop()
    subprocess.run(["umount", f"/run/criagent/sandboxes/{sandbox}/ns/net"], check=True)
    pods.cri = agent.start()
    assert pods.cri.pod_status(sandbox).state == api.SANDBOX_NOTREADY


MINE = '[runtime.handlers]\ncrun.path = "/usr/bin/crun"\nmine.path = "/usr/bin/crun"\n'


def code(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """How the call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def forget_mine() -> None:
    """That handler's directory goes; there is nothing in it but crun's cache."""
    mine = Path("/run/criagent/runtime/mine")
    assert [path.name for path in mine.glob("*")] in ([], [".cache"])
    shutil.rmtree(mine, ignore_errors=True)


def test_containers_whose_handler_is_configured_no_more_can_be_ended(pods: Pods) -> None:
    agent.stop()
    pods.cri = agent.start(MINE)
    config = pods.config()
    sandbox = pods.cri.run(config, handler="mine")
    ends, stopped, unread = (pods.running(pod=(sandbox, config)) for _ in range(3))
    made = pods.cri.create(sandbox, container("made", ["sleep", "1"]), config)
    agent.kill()
    pods.cri = agent.start()
    assert pods.cri.status(ends).state == api.CONTAINER_RUNNING
    for call in (
        lambda: pods.cri.exec(ends, "true"),
        lambda: pods.cri.start(made),
        lambda: pods.cri.create(sandbox, container("late", ["sleep", "1"]), config),
    ):
        status, text = code(call)
        assert status is grpc.StatusCode.FAILED_PRECONDITION, text
        assert '"mine"' in text
        assert "runtime.handlers.mine" in text
    os.kill(init_pid(pods.cri, ends), signal.SIGKILL)
    until(lambda: pods.cri.status(ends).state == api.CONTAINER_EXITED, "the exit")
    assert pods.cri.status(ends).exit_code == 137
    pods.cri.stop(stopped)
    assert pods.cri.status(stopped).state == api.CONTAINER_EXITED
    pid = init_pid(pods.cri, unread)
    pods.cri.remove_pod(sandbox)
    assert not Path(f"/proc/{pid}").exists()
    forget_mine()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '[runtime]\ndefault_handler = "runc"\n'),
        (f'[runtime]\ndefault_handler = "mine"\n{MINE}', ""),
    ],
)
def test_a_shared_pid_namespace_ends_with_its_pod_under_another_default_handler(
    pods: Pods, before: str, after: str
) -> None:
    agent.stop()
    pods.cri = agent.start(before)
    config = pods.config()
    config.linux.security_context.namespace_options.pid = api.POD
    sandbox = pods.cri.run(config)
    (cgroup,) = Path("/sys/fs/cgroup").rglob(sandbox)
    (holder,) = (cgroup / "cgroup.procs").read_text().split()
    agent.stop()
    pods.cri = agent.start(after)
    pods.cri.remove_pod(sandbox)
    assert not Path(f"/proc/{holder}").exists()
    forget_mine()
    agent.stop()
    pods.cri = agent.start()


def test_names_and_annotations_are_the_same_after_a_restart(pods: Pods) -> None:
    sandbox, config = pods.sandbox(lambda c: c.annotations.update({"a/b": "ü\n\0 odd"}))
    before = pods.cri.pod_status(sandbox)
    pods.cri = restart("kill")
    assert pods.cri.pod_status(sandbox) == before
    assert dict(before.annotations) == dict(config.annotations)


def test_a_second_agent_is_refused(pods: Pods) -> None:
    sandbox, _ = pods.sandbox()
    command = ["python3", "-m", "criagent", "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "another criagent serves" in done.stderr
    assert f"(process {Path('/run/criagent.pid').read_text().strip()})" in done.stderr
    assert pods.cri.pod_status(sandbox).state == api.SANDBOX_READY


@pytest.mark.parametrize("damage", ["truncated", "other program's", "newer", "empty"])
def test_a_wrong_state_database_is_refused_and_kept(damage: str, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    root = tmp_path / "root"
    config.write_text(
        f'[storage]\nroot = "{root}"\nrun_dir = "{tmp_path}/run"\n'
        f'socket = "{tmp_path}/run/agent.sock"\n[telemetry]\nmetrics_address = ""\n'
    )
    root.mkdir()
    good = Path("/var/lib/criagent/state.db").read_bytes()
    content = {
        "truncated": good[: len(good) // 2 + 100],
        "other program's": good[:68] + b"\0\0\0\1" + good[72:],
        "newer": good[:60] + b"\0\0\1\0" + good[64:],
        "empty": b"",
    }[damage]
    (root / "state.db").write_bytes(content)
    command = ["python3", "-m", "criagent", "--config", str(config), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1, done.stderr
    assert "state.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert (root / "state.db").read_bytes() == content


def init_pid(cri: Cri, container_id: str) -> int:
    """The container's main process, by the verbose status."""
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    text = cri.runtime.ContainerStatus(request).info["info"]
    return int(text.partition('"pid": ')[2].partition(",")[0])


def without_database(cri: Cri) -> Cri:
    """The agent anew, its database moved away as its own message says."""
    cri.close()
    agent.stop()
    for path in Path("/var/lib/criagent").glob("state.db*"):
        path.unlink()
    return agent.start()


def shared_images(cri: Cri) -> None:
    for name in (BUSYBOX, DEBIAN):
        cri.pull(name)


@pytest.mark.parametrize("handler", ["", "runc"])
def test_what_runs_without_the_database_is_ended(pods: Pods, handler: str) -> None:
    """A second copy of the pod must never run beside the first."""
    config = pods.config(
        port_mappings=[api.PortMapping(container_port=80, host_port=8089)],
    )
    config.linux.security_context.namespace_options.pid = api.POD  # a holder runs too
    sandbox = pods.cri.run(config, handler=handler)
    wanted = container("main", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
    wanted.linux.security_context.namespace_options.pid = api.POD
    wanted.mounts.add(container_path="/volume", readonly=True).image.image = DEBIAN
    container_id = pods.cri.create(sandbox, wanted, config)
    pods.cri.start(container_id)
    created = pods.cri.create(sandbox, container("made", ["sleep", "1000"]), config)
    monitors = [monitor_pid(container_id), monitor_pid(created)]
    inits = [init_pid(pods.cri, container_id), init_pid(pods.cri, created)]
    cgroups = [
        p
        for one in (container_id, created, sandbox)
        for p in Path("/sys/fs/cgroup").rglob(f"*{one}*")
    ]
    assert len(cgroups) >= 3
    pods.cri = without_database(pods.cri)
    for pid in (*monitors, *inits):
        assert not Path(f"/proc/{pid}").exists() or zombie(pid)
    assert (pods.cri.pods(), pods.cri.containers(), pods.cri.images()) == ([], [], [])
    assert [path for path in cgroups if path.exists()] == []
    assert [
        p
        for p in Path("/run/criagent").rglob("*")
        if {container_id, created, sandbox} & set(p.parts)
    ] == []
    assert sandbox not in Path("/proc/self/mountinfo").read_text()
    ended = [
        line for line in agent.LOG.read_text().splitlines() if "unknown_container_killed" in line
    ]
    assert {json.loads(line)["id"] for line in ended} >= {container_id, created, sandbox}
    shared_images(pods.cri)
    again = pods.cri.run(config, handler=handler)  # address, host port and name are free
    pods.cri.remove_pod(again)


def test_only_what_has_no_row_is_ended(pods: Pods) -> None:
    gone, stays = pods.running(), pods.running()
    pids = init_pid(pods.cri, gone), init_pid(pods.cri, stays)
    agent.stop()
    connection = sqlite3.connect("/var/lib/criagent/state.db")
    connection.execute("UPDATE containers SET body = ? WHERE id = ?", (b"{}", gone))
    connection.commit()
    connection.close()
    pods.cri = agent.start()
    assert [Path(f"/proc/{pid}").exists() for pid in pids] == [False, True]
    assert [container_id.id for container_id in pods.cri.containers()] == [stays]
    assert pods.cri.exec(stays, "echo", "alive").stdout == b"alive\n"
    assert "row_set_aside" in agent.LOG.read_text()


def test_another_root_does_not_end_the_containers_of_the_first(pods: Pods) -> None:
    """A changed storage.root is no lost database."""
    container_id = pods.running()
    pid = init_pid(pods.cri, container_id)
    agent.stop()
    with contextlib.suppress(AssertionError):  # it listens before it has found them, or it does not
        agent.start('[storage]\nroot = "/var/lib/criagent-other"\n').close()
    assert agent.died()
    assert Path(f"/proc/{pid}").exists()
    refusal = agent.LOG.read_text().splitlines()[-1]
    assert container_id in refusal
    assert "storage.root" in refusal
    pods.cri = agent.start()
    assert pods.cri.exec(container_id, "echo", "alive").stdout == b"alive\n"
    shutil.rmtree("/var/lib/criagent-other")


def test_an_agent_of_another_runtime_is_left_alone(pods: Pods, tmp_path: Path) -> None:
    """Its cgroups have names of the same form."""
    other = Path("/sys/fs/cgroup/other") / ("a" * 64)
    other.mkdir(parents=True)
    child = subprocess.Popen(["sleep", "1000"])
    try:
        (other / "cgroup.procs").write_text(str(child.pid))
        pods.cri = without_database(pods.cri)
        assert child.poll() is None
    finally:
        child.kill()
        child.wait()
        other.rmdir()
        other.parent.rmdir()
    shared_images(pods.cri)


def zombie(pid: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
