# SPDX-License-Identifier: Apache-2.0
# vm: seconds=250
"""Limits of NRI plugins in cgroups of version 2 under the systemd driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from criagent._proto import nri_pb2 as nri
from tests.support.cri_client import api
from tests.support.nri_plugin import NriPlugin
from tests.support.vm_fixtures import VmPods, cgroup_of, scope_of, sleeper

HANDLERS = ("crun", "runc")


def _read(cgroup: Path, name: str) -> str:
    return (cgroup / name).read_text().strip()


def _limiting(_: nri.CreateContainerRequest) -> nri.CreateContainerResponse:
    answer = nri.CreateContainerResponse()
    limits = answer.adjust.linux.resources
    limits.cpu.shares.value = 512
    limits.cpu.quota.value = 50_000
    limits.cpu.period.value = 100_000
    limits.cpu.cpus = "0"
    limits.memory.limit.value = 64 << 20
    limits.pids.limit = 55
    limits.unified["memory.high"] = str(48 << 20)
    return answer


def _limits(scope: Path) -> tuple[str, str, str, str, str]:
    names = ("cpu.max", "cpuset.cpus", "memory.max", "pids.max", "memory.high")
    cpu, cpus, memory, pids, high = (_read(scope, name) for name in names)
    return cpu, cpus, memory, pids, high


@pytest.mark.parametrize("handler", HANDLERS)
def test_limits_of_a_plugin_are_the_kernels(pods: VmPods, handler: str) -> None:
    wanted = sleeper()
    wanted.linux.resources.memory_limit_in_bytes = 128 << 20
    with NriPlugin({"CreateContainer": _limiting}):
        container_id = pods.created(wanted, pods.of_handler(handler))
    scope = scope_of(pods.cri, container_id)
    memory, high = str(64 << 20), str(48 << 20)
    assert _limits(scope) == ("50000 100000", "0", memory, "55", high)
    assert 1 < int(_read(scope, "cpu.weight")) < 100  # less than the default 1024 shares
    assert cgroup_of(pods.cri, container_id).is_relative_to(scope)


@pytest.mark.parametrize("handler", HANDLERS)
def test_an_update_of_a_plugin_is_the_kernels_and_is_reported(pods: VmPods, handler: str) -> None:
    container_id = pods.created(sleeper(), pods.of_handler(handler))
    scope = scope_of(pods.cri, container_id)
    with NriPlugin() as plugin:
        request = nri.UpdateContainersRequest()
        update = request.update.add(container_id=container_id)
        update.linux.resources.memory.limit.value = 96 << 20
        update.linux.resources.cpu.quota.value = 20_000
        update.linux.resources.cpu.period.value = 100_000
        answer = nri.UpdateContainersResponse.FromString(
            plugin.call("UpdateContainers", request).payload
        )
        assert not answer.failed
    assert _read(scope, "memory.max") == str(96 << 20)
    assert _read(scope, "cpu.max") == "20000 100000"
    status = pods.cri.status(container_id).resources.linux
    assert status.memory_limit_in_bytes == 96 << 20


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_plugin_changes_what_the_kubelet_updates(pods: VmPods, handler: str) -> None:
    container_id = pods.created(sleeper(), pods.of_handler(handler))

    def halved(request: Any) -> nri.UpdateContainerResponse:
        answer = nri.UpdateContainerResponse()
        update = answer.update.add(container_id=container_id)
        asked = request.linux_resources.memory.limit.value
        update.linux.resources.memory.limit.value = asked // 2
        return answer

    with NriPlugin({"UpdateContainer": halved}):
        request = api.UpdateContainerResourcesRequest(container_id=container_id)
        request.linux.memory_limit_in_bytes = 256 << 20
        pods.cri.runtime.UpdateContainerResources(request, timeout=60)
    assert _read(scope_of(pods.cri, container_id), "memory.max") == str(128 << 20)
