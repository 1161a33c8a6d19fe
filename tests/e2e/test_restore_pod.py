# SPDX-License-Identifier: Apache-2.0
"""RestorePod: the containers of a checkpoint go on in a new pod."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.checkpoints import Change, CheckpointedPod, count, goes_on, restore, start
from tests.support.cri_client import api
from tests.support.fixtures import compiled
from tests.support.nri_plugin import NriPlugin
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

_RESTORES = Path("/var/lib/criagent/restores")
_CODE = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"
# Fills 256 MB with numbers, and tells whether they are still there once it is asked.
_PAGES = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    size_t count = (256 << 20) / sizeof(size_t), wrong = 0;
    volatile size_t *memory = malloc(count * sizeof(size_t));
    for (size_t i = 0; i < count; i++) memory[i] = i * 2654435761u;
    fclose(fopen("/ready", "w"));
    while (access("/ask", F_OK)) usleep(50000);
    for (size_t i = 0; i < count; i++) wrong += memory[i] != i * 2654435761u;
    printf("wrong: %zu\n", wrong);
    return 9;
}
"""
# A message in a queue and a semaphore of System V, made by whoever comes first.
_IPC = r"""
#include <stdio.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <unistd.h>
int main(void) {
    struct { long type; char text[8]; } message = {1, "message"};
    int queue = msgget(77, IPC_CREAT | 0600);
    semget(78, 1, IPC_CREAT | 0600);
    msgsnd(queue, &message, sizeof(message.text), 0);
    fclose(fopen("/ready", "w"));
    for (;;) usleep(50000);
}
"""


@pytest.fixture(params=["runc", "crun"])
def handler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def restarted(pods: Pods) -> None:
    agent.stop()
    pods.cri.close()
    pods.cri = agent.start()


def volume(tmp_path: Path, source: str) -> Change:
    """Gives a container the program /program."""
    program = tmp_path / "program"
    program.write_bytes(compiled(source))
    program.chmod(0o755)
    return lambda config: config.mounts.add(container_path="/program", host_path=str(program))


def ready(pods: Pods, container_id: str) -> None:
    """The program has done its work."""
    asked = ("test", "-e", "/ready")
    until(lambda: not pods.cri.exec(container_id, *asked).exit_code, "the program", 120)


def test_a_counter_goes_on_in_a_new_pod_after_a_restart_of_the_agent(
    pods: Pods, tmp_path: Path, handler: str
) -> None:
    old = CheckpointedPod(pods, handler, hostname="before")
    counter = old.add()
    goes_on(pods, counter)
    old.checkpoint(tmp_path / "output")
    saved = count(pods, counter)
    old.remove()
    restarted(pods)
    request = old.request(tmp_path / "output")
    sandbox, (restored,) = restore(pods, request)
    assert pods.cri.status(restored).state == api.CONTAINER_CREATED
    assert pods.cri.pod_status(sandbox).state == api.SANDBOX_READY
    assert restore(pods, request) == (sandbox, [restored])  # a repeat gets the same
    restarted(pods)
    assert pods.cri.status(restored).state == api.CONTAINER_CREATED
    start(pods, [restored])
    assert pods.cri.status(restored).state == api.CONTAINER_RUNNING
    goes_on(pods, restored)
    first = int(pods.log(restored).splitlines()[0].removeprefix("line "))
    assert 1 < first <= saved + 1  # the new log begins where the checkpoint was made
    assert not list(_RESTORES.iterdir())
    restarted(pods)
    goes_on(pods, restored)
    assert pods.cri.status(restored).state == api.CONTAINER_RUNNING


def test_the_new_pod_is_its_own(pods: Pods, tmp_path: Path, handler: str) -> None:
    """Address, hostname, cgroup and namespaces are the new pod's, while the old one still runs."""
    old = CheckpointedPod(pods, handler, hostname="before")
    counter = old.add()
    goes_on(pods, counter)
    old.checkpoint(tmp_path / "output")
    sandbox, (restored,) = restore(pods, old.request(tmp_path / "output"))
    start(pods, [restored])
    address = pods.cri.pod_status(sandbox).network.ip
    assert address not in {"", pods.cri.pod_status(old.sandbox).network.ip}
    assert f"inet {address}/".encode() in pods.cri.exec(restored, "ip", "address").stdout
    assert pods.cri.exec(restored, "hostname").stdout == b"restored\n"
    assert pods.cri.exec(counter, "hostname").stdout == b"before\n"
    assert pods.cri.exec(restored, "cat", "/proc/1/comm").stdout == b"sh\n"
    pins = Path("/run/criagent/sandboxes") / sandbox / "ns"
    for kind in ("net", "uts", "ipc"):
        inside = pods.cri.exec(restored, "readlink", f"/proc/1/ns/{kind}").stdout.decode()
        assert inside.strip() == f"{kind}:[{(pins / kind).stat().st_ino}]"
    cgroups = pods.cri.exec(restored, "cat", "/proc/1/cgroup").stdout.decode().splitlines()
    assert "0::/" in cgroups  # its cgroup namespace begins in its own cgroup
    node = next(Path("/sys/fs/cgroup").rglob(f"*{restored}*"))
    assert len((node / "cgroup.procs").read_text().split()) >= 1
    goes_on(pods, counter)
    goes_on(pods, restored)


def test_files_and_shared_memory_are_there(pods: Pods, tmp_path: Path, handler: str) -> None:
    old = CheckpointedPod(pods, handler)
    counter = old.add()
    goes_on(pods, counter)
    script = (
        "echo new > /new; rm /etc/group; mkdir -p /a/b; ln -s /x /a/b/link; ln /new /a/hard; "
        "chmod 600 /etc/passwd; echo dot > /.wh.name; chown 5:6 /a; echo shm > /dev/shm/file"
    )
    assert pods.cri.exec(counter, "sh", "-c", script).exit_code == 0
    old.checkpoint(tmp_path / "output")
    old.remove()
    _, (restored,) = restore(pods, old.request(tmp_path / "output"))
    start(pods, [restored])
    seen = (
        "cat /new /.wh.name /dev/shm/file; readlink /a/b/link; stat -c '%u:%g %a' /a /etc/passwd; "
        "stat -c %h /a/hard; ls /etc/group"
    )
    answer = pods.cri.exec(restored, "sh", "-c", seen)
    assert answer.stdout == b"new\ndot\nshm\n/x\n5:6 755\n0:0 600\n2\n"
    assert b"No such file" in answer.stderr


def test_volumes_and_log_are_those_of_the_request(pods: Pods, tmp_path: Path, handler: str) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    old = CheckpointedPod(pods, handler)
    counter = old.add(
        change=lambda c: c.mounts.add(container_path="/vol", host_path=str(tmp_path / "one"))
    )
    assert pods.cri.exec(counter, "cat", "/vol/name").stdout == b"one"
    goes_on(pods, counter)
    old.checkpoint(tmp_path / "output")
    old.remove()
    request = old.request(tmp_path / "output")
    request.container_configs[0].mounts[0].host_path = str(tmp_path / "two")
    request.container_configs[0].labels["new"] = "label"
    request.container_configs[0].log_path = "other.log"
    _, (restored,) = restore(pods, request)
    start(pods, [restored])
    assert pods.cri.exec(restored, "cat", "/vol/name").stdout == b"two"
    status = pods.cri.status(restored)
    assert status.labels["new"] == "label"
    assert Path(status.log_path).name == "other.log"
    goes_on(pods, restored)
    until(lambda: "line" in pods.log(restored), "a line of the log")


def test_three_containers_go_on_and_end_as_any(pods: Pods, tmp_path: Path, handler: str) -> None:
    old = CheckpointedPod(pods, handler)
    ids = [old.add("sh", "-c", _CODE) for _ in range(3)]
    for container_id in ids:
        goes_on(pods, container_id)
    old.checkpoint(tmp_path / "output")
    old.remove()
    request = old.request(tmp_path / "output")
    sandbox, restored = restore(pods, request)
    start(pods, restored)
    for container_id in restored:
        goes_on(pods, container_id)
    stats = pods.cri.runtime.ContainerStats(api.ContainerStatsRequest(container_id=restored[0]))
    assert stats.stats.cpu.usage_core_nano_seconds.value > 0
    listed = pods.cri.runtime.PodSandboxStats(api.PodSandboxStatsRequest(pod_sandbox_id=sandbox))
    assert len(listed.stats.linux.containers) == 3
    for container_id, grace, code in zip(restored, (20, 20, 0), (7, 7, 137), strict=True):
        pods.cri.stop(container_id, grace)
        status = pods.cri.status(container_id)
        assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, code)
        assert status.finished_at > status.started_at > status.created_at
    pods.cri.remove(restored[0])
    pods.cri.remove_pod(sandbox)
    assert not pods.cri.containers()


def test_system_v_objects_of_the_pod_are_restored_once(
    pods: Pods, tmp_path: Path, handler: str
) -> None:
    """All containers share them, so each archive has them."""
    program = volume(tmp_path, _IPC)
    old = CheckpointedPod(pods, handler)
    ids = [old.add("/program", change=program) for _ in range(2)]
    for container_id in ids:
        ready(pods, container_id)
    old.checkpoint(tmp_path / "output")
    old.remove()
    _, restored = restore(pods, old.request(tmp_path / "output"))
    start(pods, restored)
    for kind in ("msg", "sem"):
        for container_id in restored:
            lines = pods.cri.exec(container_id, "cat", f"/proc/sysvipc/{kind}").stdout.splitlines()
            assert [line.split()[0] for line in lines] == [
                b"key",
                b"77" if kind == "msg" else b"78",
            ]
    queued = pods.cri.exec(restored[1], "cat", "/proc/sysvipc/msg").stdout.splitlines()[1]
    assert queued.split()[4] == b"2"  # messages, one of each container


def test_256_mb_of_memory_are_restored(pods: Pods, tmp_path: Path, handler: str) -> None:
    old = CheckpointedPod(pods, handler)
    ready(pods, old.add("/program", change=volume(tmp_path, _PAGES)))
    old.checkpoint(tmp_path / "output")
    old.remove()
    _, (restored,) = restore(pods, old.request(tmp_path / "output"))
    start(pods, [restored])
    assert pods.cri.exec(restored, "touch", "/ask").exit_code == 0
    until(lambda: pods.cri.status(restored).state == api.CONTAINER_EXITED, "its end", 60)
    assert pods.cri.status(restored).exit_code == 9
    assert pods.log(restored) == "wrong: 0\n"


def test_an_agent_killed_while_criu_restores(pods: Pods, tmp_path: Path, handler: str) -> None:
    """The container runs, or can be started again; nothing of the attempt disturbs that."""
    old = CheckpointedPod(pods, handler)
    ready(pods, old.add("/program", change=volume(tmp_path, _PAGES)))
    old.checkpoint(tmp_path / "output")
    old.remove()
    _, (restored,) = restore(pods, old.request(tmp_path / "output"))
    call = pods.cri.runtime.StartContainer.future(
        api.StartContainerRequest(container_id=restored), timeout=60
    )
    log = Path("/run/criagent/containers") / restored / "restore.log"
    until(lambda: log.exists() or call.done(), "CRIU")
    agent.kill()
    assert isinstance(call.exception(), grpc.RpcError)
    pods.cri.close()
    pods.cri = agent.start()
    start(pods, [restored])
    assert pods.cri.exec(restored, "touch", "/ask").exit_code == 0
    until(lambda: pods.cri.status(restored).state == api.CONTAINER_EXITED, "its end", 60)
    assert (pods.cri.status(restored).exit_code, pods.log(restored)) == (9, "wrong: 0\n")
    assert not list(_RESTORES.iterdir())
    assert not list(Path("/tmp").glob(".criu.*"))


@pytest.mark.parametrize("moment", ["log", "mounts"])
def test_a_stop_ends_a_restore(pods: Pods, tmp_path: Path, handler: str, moment: str) -> None:
    """When CRIU has begun to write its log, and when it has mounted the roots of namespaces."""
    old = CheckpointedPod(pods, handler)
    ready(pods, old.add("/program", change=volume(tmp_path, _PAGES)))
    old.checkpoint(tmp_path / "output")
    old.remove()
    sandbox, (restored,) = restore(pods, old.request(tmp_path / "output"))
    call = pods.cri.runtime.StartContainer.future(
        api.StartContainerRequest(container_id=restored), timeout=60
    )
    log = Path("/run/criagent/containers") / restored / "restore.log"
    mounts = Path("/proc/self/mountinfo")
    reached = {"log": log.exists, "mounts": lambda: "/.criu.mntns." in mounts.read_text()}[moment]
    until(lambda: reached() or call.done(), "CRIU")
    pods.cri.stop(restored)
    status = pods.cri.status(restored)
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)
    assert call.exception() is None or isinstance(call.exception(), grpc.RpcError)
    cgroup = list(Path("/sys/fs/cgroup").rglob(f"*{restored}*"))
    assert not any((one / "cgroup.procs").read_text() for one in cgroup)
    assert not list(Path("/tmp").glob(".criu.*"))
    assert not reached() or moment == "log"
    pods.cri.remove_pod(sandbox)


def test_events_are_those_of_any_pod(pods: Pods, tmp_path: Path, handler: str) -> None:
    old = CheckpointedPod(pods, handler)
    goes_on(pods, old.add())
    old.checkpoint(tmp_path / "output")
    old.remove()
    events = pods.cri.runtime.GetContainerEvents(api.GetEventsRequest())
    events.initial_metadata()
    sandbox, (restored,) = restore(pods, old.request(tmp_path / "output"))
    start(pods, [restored])
    pods.cri.stop(restored)
    pods.cri.remove_pod(sandbox)
    seen: list[tuple[str, int]] = []
    while not seen or seen[-1] != (sandbox, api.CONTAINER_DELETED_EVENT):
        event = next(events)
        seen.append((event.container_id, event.container_event_type))
    events.cancel()
    created, started, stopped, deleted = (
        api.CONTAINER_CREATED_EVENT,
        api.CONTAINER_STARTED_EVENT,
        api.CONTAINER_STOPPED_EVENT,
        api.CONTAINER_DELETED_EVENT,
    )
    assert [kind for one, kind in seen if one == restored] == [created, started, stopped, deleted]
    assert [kind for one, kind in seen if one == sandbox] == [created, started, stopped, deleted]


def test_a_restored_container_that_was_not_started_can_be_stopped_and_removed(
    pods: Pods, tmp_path: Path, handler: str
) -> None:
    old = CheckpointedPod(pods, handler)
    goes_on(pods, old.add())
    goes_on(pods, old.add())
    old.checkpoint(tmp_path / "output")
    old.remove()
    sandbox, restored = restore(pods, old.request(tmp_path / "output"))
    pods.cri.stop(restored[0], 20)
    status = pods.cri.status(restored[0])
    assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 137)
    pods.cri.remove(restored[1])
    assert [one.id for one in pods.cri.containers()] == [restored[0]]
    pods.cri.remove_pod(sandbox)
    assert not list(_RESTORES.iterdir())


@pytest.mark.parametrize("field", ["tty", "stdin"])
def test_streams_are_those_of_the_new_monitor(
    pods: Pods, tmp_path: Path, handler: str, field: str
) -> None:
    old = CheckpointedPod(pods, handler)
    goes_on(pods, old.add(change=lambda config: setattr(config, field, True)))
    old.checkpoint(tmp_path / "output")
    old.remove()
    _, (restored,) = restore(pods, old.request(tmp_path / "output"))
    start(pods, [restored])
    last = goes_on(pods, restored)
    until(lambda: f"line {last}" in pods.log(restored), "the line in the log")
    pods.cri.stop(restored)
    assert pods.cri.status(restored).exit_code == 137


def test_nri_plugins_hear_of_it_in_order(pods: Pods, tmp_path: Path, handler: str) -> None:
    old = CheckpointedPod(pods, handler)
    goes_on(pods, old.add())
    old.checkpoint(tmp_path / "output")
    old.remove()
    with NriPlugin() as plugin:
        sandbox, restored = restore(pods, old.request(tmp_path / "output"))
        start(pods, restored)
        pods.cri.remove_pod(sandbox)
        pod_calls = [name for name, _ in plugin.calls if name.endswith(("Sandbox", "Container"))]
    assert pod_calls == [
        "RunPodSandbox",
        "CreateContainer",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "StopPodSandbox",
        "RemoveContainer",
        "RemovePodSandbox",
    ]
