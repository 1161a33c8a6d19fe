# SPDX-License-Identifier: Apache-2.0
"""Statistics and resources of pods."""

from __future__ import annotations

import os

import pytest

from tests.support.cri_client import api
from tests.support.pods import Pods

pytestmark = pytest.mark.root


def test_statistics_of_a_pod_tell_its_network_and_containers(pods: Pods) -> None:
    sandbox = pods.sandbox(lambda c: setattr(c.linux, "cgroup_parent", "/test-pod"))
    container_id = pods.running(pod=sandbox)
    pods.cri.exec(container_id, "ping", "-c", "2", "-W", "1", "10.88.0.1")
    request = api.PodSandboxStatsRequest(pod_sandbox_id=sandbox[0])
    linux = pods.cri.runtime.PodSandboxStats(request).stats.linux
    assert linux.network.default_interface.name == "eth0"
    assert linux.network.default_interface.rx_bytes.value > 100
    assert linux.cpu.usage_core_nano_seconds.value > 0
    assert [c.attributes.id for c in linux.containers] == [container_id]
    listed = pods.cri.runtime.ListPodSandboxStats(api.ListPodSandboxStatsRequest()).stats
    assert [one.attributes.id for one in listed] == [sandbox[0]]
    status = pods.cri.runtime.PodSandboxStatus(
        api.PodSandboxStatusRequest(pod_sandbox_id=sandbox[0])
    )
    assert [c.id for c in status.containers_statuses] == [container_id]
    assert status.timestamp > 0
    pods.cri.remove_pod(sandbox[0])

    os.rmdir("/sys/fs/cgroup/test-pod")


def test_a_pod_on_the_hosts_network_has_no_network_of_its_own(pods: Pods) -> None:
    def on_host(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.network = api.NODE

    sandbox = pods.sandbox(on_host)
    request = api.PodSandboxStatsRequest(pod_sandbox_id=sandbox[0])
    stats = pods.cri.runtime.PodSandboxStats(request).stats
    assert not stats.linux.HasField("network")
