# SPDX-License-Identifier: Apache-2.0
"""criagent as a systemd service with the systemd cgroup driver, on a node made as kind's are."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import Cri, api, container, pod
from tests.support.systemd_node import SystemdNode
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

SOURCE = "docker://127.0.0.1:5000/e2e-test-images/busybox:1.29-2"
NAME = "docker.io/library/busybox:kind"
SLICE = "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podx.slice"
MONITORS = "/system.slice/criagent-monitors.service/monitors"
IMPORT = [
    *("ctr", "--namespace=k8s.io", "images", "import"),
    *("--all-platforms", "--digests", "--snapshotter=overlayfs", "-"),
]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SystemdNode]:
    """A booted machine with one image, loaded as `kind load` does."""
    machine = tmp_path / "machine"
    machine.mkdir()
    booted = SystemdNode(machine)
    try:
        archive = tmp_path / "image.tar"
        copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--insecure-policy", SOURCE]
        subprocess.run([*copy, f"docker-archive:{archive}:busybox:kind"], check=True)
        assert NAME in booted.run(*IMPORT, stdin=archive.read_bytes())
        yield booted
    finally:
        booted.close()


def started(
    cri: Cri, name: str, handler: str = "", command: tuple[str, ...] = ("sleep", "100000")
) -> tuple[str, str]:
    """A pod below the kubelet's slice with a running container: their ids."""
    config = pod(name, log_directory="/tmp/logs")
    config.linux.cgroup_parent = SLICE
    sandbox = cri.run(config, handler=handler)
    container_id = cri.create(sandbox, container("main", command, NAME), config)
    cri.start(container_id)
    return sandbox, container_id


def test_a_container_in_a_scope_is_checkpointed_and_goes_on(node: SystemdNode) -> None:
    """CRIU stops and starts the cgroup that the agent has frozen."""
    cri = node.client()
    count = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.05; done"
    for handler in ("crun", "runc"):
        _, container_id = started(cri, f"counted-{handler}", handler, ("sh", "-c", count))
        location = f"/var/lib/{handler}.tar"
        request = api.CheckpointContainerRequest(container_id=container_id, location=location)
        cri.runtime.CheckpointContainer(request, timeout=100)
        assert "checkpoint/inventory.img" in node.run("tar", "-tf", location).splitlines()
        before = cri.exec(container_id, "cat", "/count").stdout
        until(lambda: cri.exec(container_id, "cat", "/count").stdout != before, "the next number")  # noqa: B023
    cri.close()


def test_the_service_its_driver_and_its_pods(node: SystemdNode) -> None:
    findings = json.loads(node.run("criagent", "doctor", "--json", check=False))
    found = {finding["name"]: finding for finding in findings}
    assert [name for name, entry in found.items() if entry["level"] == "error"] == []
    assert found["criagent.service"]["text"] == "active with the required settings"
    assert found["cgroup driver"]["text"] == "systemd"
    info = json.loads(node.run("crictl", "info"))
    assert info["config"]["cgroupDriver"] == "systemd"
    assert node.run("systemctl", "list-units", "--failed", "--no-legend") == ""
    cri = node.client()
    for handler in ("", "runc"):
        sandbox, container_id = started(cri, f"pod-{handler}", handler)
        cgroup = node.run("cat", f"/proc/{node.pid(cri, container_id)}/cgroup").strip()
        assert f"{SLICE}/cri-{container_id}.scope" in cgroup
        monitors = node.run("cat", f"/sys/fs/cgroup{MONITORS}/cgroup.procs").split()
        assert len(monitors) == 1
        assert container_id in node.run("cat", f"/proc/{monitors[0]}/cmdline")
        scope = node.run(
            "systemctl", "show", "--property=ActiveState,Slice", f"cri-{container_id}.scope"
        )
        assert "ActiveState=active" in scope
        assert "Slice=kubelet-kubepods-podx.slice" in scope
        assert cri.pod_status(sandbox).network.ip.startswith("10.89.")
        assert cri.exec(container_id, "echo", "hello").stdout == b"hello\n"
        assert container_id[:13] in node.run("crictl", "ps")
        cri.remove_pod(sandbox)
        until(
            lambda container_id=container_id: (
                container_id not in node.run("systemctl", "list-units", "--all", "--no-legend")
            ),
            "the end of the scope",
        )
    cri.close()


def test_restarts_and_kills_of_the_service_lose_no_container(node: SystemdNode) -> None:
    cri = node.client()
    _, container_id = started(cri, "survivor")
    pid, begin = node.pid(cri, container_id), cri.status(container_id).started_at
    stopped, made, failures = threading.Event(), [0], []

    def load() -> None:
        client = node.client()
        while not stopped.is_set():
            try:
                other, _ = started(client, f"load-{made[0]}")
                client.remove_pod(other)
                made[0] += 1
            except grpc.RpcError as error:
                if error.code() not in {
                    grpc.StatusCode.UNAVAILABLE,
                    grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.UNKNOWN,
                    grpc.StatusCode.ALREADY_EXISTS,  # of the attempt before the kill
                }:
                    failures.append(error.details())
                made[0] += 1
        client.close()

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for words in [*[("kill", "--signal=KILL")] * 7, ("restart",)]:
            before = node.run("systemctl", "show", "--property=InvocationID", "criagent")
            node.run("systemctl", *words, "criagent")
            until(
                lambda before=before: (
                    node.run("systemctl", "show", "--property=InvocationID", "criagent") != before
                    and node.run("systemctl", "is-active", "criagent", check=False) == "active\n"
                ),
                "the next start",
                60,
            )
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "restart", "dbus")
    finally:
        stopped.set()
        thread.join(60)
    assert failures == []
    assert (node.pid(cri, container_id), cri.status(container_id).started_at) == (pid, begin)
    assert cri.status(container_id).state == api.CONTAINER_RUNNING
    node.run("systemctl", "stop", "criagent")
    assert node.run("cat", f"/proc/{pid}/comm") == "sleep\n"
    node.run("systemctl", "start", "criagent")
    assert node.pid(cri, container_id) == pid
    for left in cri.pods():
        cri.remove_pod(left.id)
    assert cri.containers() == []
    cri.close()


def test_monitors_find_their_unit_again_that_was_restarted(node: SystemdNode) -> None:
    """With no monitor in it systemd takes the directory below the unit away."""
    node.run("systemctl", "restart", "criagent-monitors")
    assert node.run("ls", "-d", f"/sys/fs/cgroup{MONITORS}", check=False) == ""
    cri = node.client()
    sandbox, container_id = started(cri, "after")
    (monitor,) = node.run("cat", f"/sys/fs/cgroup{MONITORS}/cgroup.procs").split()
    assert container_id in node.run("cat", f"/proc/{monitor}/cmdline")
    cri.remove_pod(sandbox)
    cri.close()


def test_failed_scopes_of_no_container_are_forgotten_at_the_next_start(node: SystemdNode) -> None:
    """What a create leaves that was killed while systemd made its scope."""
    cri = node.client()
    _, container_id = started(cri, "running")
    left, foreign = f"cri-{'0' * 60}dead.scope", "cri-foreign.scope"
    for unit in (left, foreign):
        node.run("systemd-run", "--scope", f"--unit={unit}", "-p", "RuntimeMaxSec=1", "sleep", "9",
                 check=False)  # fmt: skip
        until(
            lambda unit=unit: node.run("systemctl", "is-failed", unit, check=False) == "failed\n",
            "its failure",
        )
    node.run("systemctl", "restart", "criagent")
    assert left not in node.run("systemctl", "list-units", "--all", "--full", "cri-*.scope")
    assert node.run("systemctl", "is-failed", foreign, check=False) == "failed\n"
    assert node.run("systemctl", "is-active", f"cri-{container_id}.scope") == "active\n"
    for sandbox in node.client().pods():
        cri.remove_pod(sandbox.id)
    cri.close()


def test_without_dbus_crun_says_so_and_runc_goes_on(node: SystemdNode) -> None:
    cri = node.client()
    _, before = started(cri, "before")
    node.run("systemctl", "stop", "dbus.socket", "dbus.service")
    with pytest.raises(grpc.RpcError) as caught:
        started(cri, "crun")
    assert "systemctl start dbus" in str(caught.value.details())
    _, container_id = started(cri, "runc", "runc")
    assert cri.status(container_id).state == api.CONTAINER_RUNNING
    found = json.loads(node.run("criagent", "doctor", "--json", check=False))
    (driver,) = [finding for finding in found if finding["name"] == "cgroup driver"]
    assert driver["level"] == "error"
    assert cri.status(before).state == api.CONTAINER_RUNNING
    node.run("systemctl", "start", "dbus.socket")
    started(cri, "after")
    for left in cri.pods():
        cri.remove_pod(left.id)
    cri.close()


def test_what_runs_without_the_database_is_ended_with_its_scopes(node: SystemdNode) -> None:
    """The steps that an operator takes with a database that cannot be read."""
    cri = node.client()
    ids, pids = [], []
    for handler in ("", "runc"):
        sandbox, container_id = started(cri, f"lost-{handler}", handler)
        ids += [sandbox, container_id]
        pids.append(node.pid(cri, container_id))
    addresses = node.run("sh", "-c", "ls /var/lib/cni/networks/*/10.89.*", check=False).split()
    assert len(addresses) == 2
    node.run("systemctl", "stop", "criagent")
    node.run("sh", "-c", "mkdir /root/away && mv /var/lib/criagent/state.db* /root/away")
    node.run("systemctl", "start", "criagent")
    for pid in pids:
        assert node.run("cat", f"/proc/{pid}/comm", check=False) == ""
    monitors = node.run("cat", f"/sys/fs/cgroup{MONITORS}/cgroup.procs", check=False)
    assert monitors.split() == []
    units = ("systemctl", "list-units", "--no-legend")  # scopes and mounts
    until(lambda: [one for one in ids if one in node.run(*units)] == [], "the end of its units")
    assert node.run("systemctl", "list-units", "--failed", "--no-legend") == ""
    log = node.run("journalctl", "-u", "criagent", "-p", "err", "--no-pager")
    assert all(container_id in log for container_id in ids[1::2])
    assert node.run("sh", "-c", "ls /var/lib/cni/networks/*/10.89.*", check=False) == ""
    assert (cri.pods(), cri.containers(), cri.images()) == ([], [], [])
    cri.close()
