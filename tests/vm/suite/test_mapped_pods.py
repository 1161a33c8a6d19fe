# SPDX-License-Identifier: Apache-2.0
# vm: seconds=190
"""Pods with user namespaces under systemd, with every controller, on Debian's own kernel."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import api
from tests.support.mapped import HOST, LENGTH, mapped, volume
from tests.support.units import systemctl
from tests.support.vm_fixtures import CGROUPS, VmPods, scope_of, sleeper
from tests.support.waiting import until

HANDLERS = ("crun", "runc")

Box = tuple[str, api.PodSandboxConfig]


def mapped_box(pods: VmPods, handler: str, **fields: object) -> Box:
    config = pods.config()
    mapped(**fields)(config)  # type: ignore[arg-type]
    return pods.cri.run(config, handler=handler), config


def words(pods: VmPods, container_id: str, *command: str) -> str:
    done = pods.cri.exec(container_id, *command, timeout=60)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode().strip()


def init(pods: VmPods, container_id: str) -> Path:
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = pods.cri.runtime.ContainerStatus(request, timeout=30).info["info"]
    return Path("/proc", str(json.loads(info)["pid"]))


@pytest.fixture
def source() -> Iterator[Path]:
    """A directory on the disk."""
    place = Path("/var/lib/test-volume")
    place.mkdir()
    yield place
    shutil.rmtree(place)


def test_the_handlers_say_that_they_can(pods: VmPods) -> None:
    status = pods.cri.runtime.Status(api.StatusRequest(), timeout=30)
    assert all(handler.features.user_namespaces for handler in status.runtime_handlers)


@pytest.mark.parametrize("handler", HANDLERS)
def test_scope_ids_and_volume(pods: VmPods, handler: str, source: Path) -> None:
    (source / "theirs").touch()
    os.chown(source / "theirs", 33, 44)
    sandbox = mapped_box(pods, handler)
    config = sleeper()
    volume(source)(config)
    container_id = pods.created(config, sandbox)
    scope = scope_of(pods.cri, container_id)
    assert (
        scope == CGROUPS / sandbox[1].linux.cgroup_parent.lstrip("/") / f"cri-{container_id}.scope"
    )
    assert init(pods, container_id).stat().st_uid == HOST
    assert words(pods, container_id, "cat", "/proc/self/uid_map").split() == [
        "0",
        str(HOST),
        str(LENGTH),
    ]
    assert words(pods, container_id, "stat", "-c", "%u:%g", "/volume/theirs") == "33:44"
    words(pods, container_id, "touch", "/volume/mine")
    assert (source / "mine").stat().st_uid == 0
    for path in ("/", "/etc/passwd", "/etc/resolv.conf", "/dev/shm"):
        assert words(pods, container_id, "stat", "-c", "%u:%g", path) == "0:0", path


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_memory_limit_holds(pods: VmPods, handler: str) -> None:
    config = sleeper("hungry", "sh", "-c", "head -c 200m /dev/zero | tail")
    config.linux.resources.memory_limit_in_bytes = 20 << 20
    config.linux.resources.unified["memory.swap.max"] = "0"
    container_id = pods.created(config, mapped_box(pods, handler))
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit", 120)
    assert pods.cri.status(container_id).reason == "OOMKilled"


@pytest.mark.parametrize("handler", HANDLERS)
def test_what_the_kubelet_gives_guaranteed_pods(pods: VmPods, handler: str) -> None:
    config = sleeper()
    config.linux.resources.oom_score_adj = -997
    config.linux.resources.cpu_shares = 1024
    config.linux.resources.cpu_quota = 50000
    config.linux.resources.cpu_period = 100000
    container_id = pods.created(config, mapped_box(pods, handler))
    assert (init(pods, container_id) / "oom_score_adj").read_text() == "-997\n"
    assert (scope_of(pods.cri, container_id) / "cpu.max").read_text() == "50000 100000\n"
    assert words(pods, container_id, "sh", "-c", "ulimit -n; ulimit -Hn").split() == [
        "1024",
        "524288",
    ]


def test_sysctls_and_ping(pods: VmPods) -> None:
    config = pods.config()
    mapped()(config)
    config.linux.sysctls.update(
        {"net.ipv4.tcp_syncookies": "0", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "11"}
    )
    container_id = pods.created(sleeper(), (pods.cri.run(config), config))
    assert words(pods, container_id, "cat", "/proc/sys/net/ipv4/tcp_syncookies") == "0"
    assert words(pods, container_id, "cat", "/proc/sys/kernel/shm_rmid_forced") == "1"
    assert words(pods, container_id, "cat", "/proc/sys/fs/mqueue/msg_max") == "11"
    words(pods, container_id, "ping", "-c", "1", "-W", "20", "127.0.0.1")


def test_shared_processes_over_a_restart_of_the_service(pods: VmPods) -> None:
    sandbox = mapped_box(pods, "", pid=api.POD)

    def shared(name: str) -> api.ContainerConfig:
        config = sleeper(name)
        config.linux.security_context.namespace_options.pid = api.POD
        return config

    first = pods.created(shared("first"), sandbox)
    systemctl("restart", "criagent")
    second = pods.created(shared("second"), sandbox)
    assert (init(pods, first) / "ns/pid").readlink() == (init(pods, second) / "ns/pid").readlink()
    assert words(pods, second, "cat", "/proc/1/comm") == "catatonit"
