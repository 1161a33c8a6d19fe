# SPDX-License-Identifier: Apache-2.0
"""Calls about the agent and its configuration, looked at from outside."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, pod
from tests.support.node_state import agent_pid
from tests.support.pods import Pods

pytestmark = pytest.mark.root


@pytest.fixture
def reconfigured(cri: Cri) -> Iterator[None]:
    """The agent may be started with another configuration; afterwards it has its own again."""
    yield
    agent.stop()
    agent.start().close()


# What `--version` says, and for the rest a crun.
_SAYS = """#!/bin/sh
[ "$1" = --version ] && {{ echo '{version}'; exit; }}
exec /usr/bin/crun "$@"
"""


@pytest.mark.parametrize(
    ("version", "kind", "part"),
    [
        ("crun version 1.28", "crun", ""),
        ("crun version 1.27.1", "crun", "crun 1.27.1 has known security problems"),
        ("youki version: 0.5.3", "runc", ""),
    ],
)
def test_handlers_below_their_security_floor_are_told_in_status_and_log(
    cri: Cri, reconfigured: None, tmp_path: Path, version: str, kind: str, part: str
) -> None:
    program = tmp_path / "program"
    program.write_text(_SAYS.format(version=version))
    program.chmod(0o755)
    agent.stop()
    log = Path("/var/log/criagent.log")
    before = log.stat().st_size
    other = agent.start(
        f'[runtime.handlers]\nrunc = false\ncrun.path = "{program}"\ncrun.type = "{kind}"\n'
    )
    answer = other.runtime.Status(api.StatusRequest())
    conditions = {one.type: one for one in answer.status.conditions}
    assert conditions["RuntimeReady"].status
    assert conditions["RuntimeHandlersSecure"].status == (not part)
    assert part in conditions["RuntimeHandlersSecure"].message
    told = [line for line in log.read_text()[before:].splitlines() if "handler_insecure" in line]
    assert len(told) == bool(part)
    assert all(str(program) in line and part in line for line in told)
    other.run(pod("with-it"))
    other.remove_pod(other.pods()[0].id)
    other.close()


def use_cidrs(cri: Cri, cidrs: str) -> None:
    network = api.NetworkConfig(pod_cidr=cidrs)
    request = api.UpdateRuntimeConfigRequest(
        runtime_config=api.RuntimeConfig(network_config=network)
    )
    cri.runtime.UpdateRuntimeConfig(request)


def test_runtime_config_tells_the_cgroup_driver_in_use(cri: Cri, reconfigured: None) -> None:
    def driver(of: Cri) -> api.CgroupDriver:
        return of.runtime.RuntimeConfig(api.RuntimeConfigRequest()).linux.cgroup_driver

    assert driver(cri) == api.CGROUPFS
    agent.stop()
    other = agent.start('[runtime]\ncgroup_driver = "systemd"\n')
    assert driver(other) == api.SYSTEMD
    other.close()


def test_status_has_both_conditions_and_the_default_handler_twice(cri: Cri) -> None:
    answer = cri.runtime.Status(api.StatusRequest(verbose=True))
    conditions = {one.type: one for one in answer.status.conditions}
    secure = conditions.pop("RuntimeHandlersSecure")
    assert set(conditions) == {"RuntimeReady", "NetworkReady"}
    assert all(one.status and not one.reason for one in conditions.values())
    # Debian 13's crun 1.21 and runc 1.1.15
    assert (secure.status, secure.reason) == (False, "KnownVulnerabilities")
    assert "handler crun: crun 1.21.0 has known" in secure.message
    assert "handler runc: runc 1.1.15 has known" in secure.message
    names = [handler.name for handler in answer.runtime_handlers]
    assert sorted(names) == ["", "crun", "runc"]
    by_name = {handler.name: handler.features for handler in answer.runtime_handlers}
    assert by_name[""] == by_name["crun"]
    config = json.loads(answer.info["config"])
    assert Path(config["stateDir"]).is_dir()
    assert config["cgroupDriver"] == "cgroupfs"
    assert not cri.runtime.Status(api.StatusRequest()).info


def test_a_handler_that_cannot_run_is_not_offered(cri: Cri, reconfigured: None) -> None:
    agent.stop()
    other = agent.start('[runtime.handlers.gone]\npath = "/usr/bin/no-such-runtime"\n')
    answer = other.runtime.Status(api.StatusRequest())
    assert [handler.name for handler in answer.runtime_handlers] == ["", "crun", "runc"]
    assert next(c.status for c in answer.status.conditions if c.type == "RuntimeReady")
    other.close()
    Path("/run/criagent/runtime/gone").rmdir()  # a handler's directory outlives its configuration


def test_pods_get_addresses_of_the_cidrs_that_were_set_last(pods: Pods) -> None:
    before = pods.cri.pod_status(pods.sandbox()[0]).network
    try:
        use_cidrs(pods.cri, "10.77.0.0/24, fd00:77::/64")
        told = pods.cri.pod_status(pods.sandbox()[0]).network
        assert told.ip.startswith("10.77.0.")
        assert [one.ip[:8] for one in told.additional_ips] == ["fd00:77:"]
        use_cidrs(pods.cri, "")  # nothing is said, nothing changes
        agent.stop()
        pods.cri = agent.start()
        assert pods.cri.pod_status(pods.sandbox()[0]).network.ip.startswith("10.77.0.")
        assert before.ip in {
            pods.cri.pod_status(sandbox.id).network.ip for sandbox in pods.cri.pods()
        }
    finally:
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        use_cidrs(pods.cri, "10.88.0.0/16,fd00:10:88::/64")


def test_a_pods_resize_is_taken_note_of_and_changes_no_file(pods: Pods) -> None:
    cgroup = Path("/sys/fs/cgroup/resized")
    cgroup.mkdir()
    sandbox = pods.sandbox(lambda c: setattr(c.linux, "cgroup_parent", "/resized"))
    files = {path.name: path.read_text() for path in _limits(cgroup)}
    request = api.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=sandbox[0],
        resources=api.LinuxContainerResources(cpu_shares=512, memory_limit_in_bytes=64 << 20),
    )
    pods.cri.runtime.UpdatePodSandboxResources(request)
    assert {path.name: path.read_text() for path in _limits(cgroup)} == files
    pods.cri.remove_pod(sandbox[0])
    cgroup.rmdir()
    with pytest.raises(grpc.RpcError) as raised:
        pods.cri.runtime.UpdatePodSandboxResources(request)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def _limits(cgroup: Path) -> list[Path]:
    return sorted([*cgroup.glob("*.max"), *cgroup.glob("*.weight"), *cgroup.glob("*.low")])


def test_the_image_filesystem_is_a_directory_with_what_is_in_use(cri: Cri) -> None:
    answer = cri.image.ImageFsInfo(api.ImageFsInfoRequest())
    for (usage,) in (answer.image_filesystems, answer.container_filesystems):
        mountpoint = Path(usage.fs_id.mountpoint)
        assert mountpoint.is_absolute()
        assert mountpoint.is_dir()
        assert abs(usage.timestamp - time.time_ns()) < 60 * 10**9
        assert usage.HasField("used_bytes")
        assert usage.HasField("inodes_used")
    assert answer.image_filesystems[0].used_bytes.value > 1 << 20
    assert answer.image_filesystems[0].inodes_used.value > 10


def test_an_idle_agent_sleeps(pods: Pods) -> None:
    for _ in range(3):
        pods.running()
    pods.cri.close()  # its keepalives would be traffic
    loop = Path(f"/proc/{agent_pid()}/task/{agent_pid()}/status")

    def switches() -> int:
        lines = loop.read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    most, looks = None, 0
    while most is None or most > 2:  # what the last calls began ends within a look or two
        before = switches()
        _wait(2.0)
        most, looks = switches() - before, looks + 1
        assert looks < 20, f"the loop woke {most} times in two seconds without a call"
    pods.cri = Cri()


def _wait(seconds: float) -> None:
    """Time that passes is what this test is about."""
    read, write = os.pipe()
    try:
        select.select([read], [], [], seconds)
    finally:
        os.close(read)
        os.close(write)
