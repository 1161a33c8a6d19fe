"""Events and statistics of pods."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import agent
import grpc
import pytest
from conftest import Pods
from cri_client import Cri, api
from waiting import until

pytestmark = pytest.mark.root

NAMES = {
    api.CONTAINER_CREATED_EVENT: "created",
    api.CONTAINER_STARTED_EVENT: "started",
    api.CONTAINER_STOPPED_EVENT: "stopped",
    api.CONTAINER_DELETED_EVENT: "deleted",
}


@contextmanager
def events(cri: Cri) -> Iterator[queue.Queue[api.ContainerEventResponse]]:
    """A subscription that is surely there: the first event of a pod of its own was seen."""
    seen: queue.Queue[api.ContainerEventResponse] = queue.Queue()
    call = cri.runtime.GetContainerEvents(api.GetEventsRequest())

    def read() -> None:
        try:
            for event in call:
                seen.put(event)
        except grpc.RpcError:
            pass

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    yield seen
    call.cancel()
    thread.join()


def test_a_life_is_told_in_order(pods: Pods) -> None:
    with events(pods.cri) as seen:
        until(lambda: _subscribed(pods, seen), "the subscription")
        box = pods.sandbox()
        row = pods.running(box=box)
        pods.cri.stop(row)
        pods.cri.remove(row)
        pods.cri.remove_pod(box[0])
        told = []
        while ("pod", "deleted") not in told:
            event = seen.get(timeout=20)
            if event.container_id in {box[0], row}:
                kind = "pod" if event.container_id == box[0] else "container"
                told.append((kind, NAMES[event.container_event_type]))
                assert event.pod_sandbox_status.id == box[0]
                assert event.created_at > 0
        assert told == [
            ("pod", "created"),
            ("pod", "started"),
            ("container", "created"),
            ("container", "started"),
            ("container", "stopped"),
            ("container", "deleted"),
            ("pod", "stopped"),
            ("pod", "deleted"),
        ]


def _subscribed(pods: Pods, seen: queue.Queue[api.ContainerEventResponse]) -> bool:
    box, _ = pods.sandbox()
    pods.cri.remove_pod(box)
    return not seen.empty()


def test_a_subscriber_does_not_hold_up_the_agents_end(pods: Pods) -> None:
    with events(pods.cri) as seen:
        until(lambda: _subscribed(pods, seen), "the subscription")
        start = time.monotonic()
        agent.stop()
        assert time.monotonic() - start < 10
    pods.cri = agent.start()


def test_statistics_of_a_pod_tell_its_network_and_containers(pods: Pods) -> None:
    box = pods.sandbox(lambda c: setattr(c.linux, "cgroup_parent", "/test-pod"))
    row = pods.running(box=box)
    pods.cri.exec(row, "ping", "-c", "2", "-W", "1", "10.88.0.1")
    request = api.PodSandboxStatsRequest(pod_sandbox_id=box[0])
    linux = pods.cri.runtime.PodSandboxStats(request).stats.linux
    assert linux.network.default_interface.name == "eth0"
    assert linux.network.default_interface.rx_bytes.value > 100
    assert linux.cpu.usage_core_nano_seconds.value > 0
    assert [c.attributes.id for c in linux.containers] == [row]
    listed = pods.cri.runtime.ListPodSandboxStats(api.ListPodSandboxStatsRequest()).stats
    assert [one.attributes.id for one in listed] == [box[0]]
    status = pods.cri.runtime.PodSandboxStatus(api.PodSandboxStatusRequest(pod_sandbox_id=box[0]))
    assert [c.id for c in status.containers_statuses] == [row]
    assert status.timestamp > 0
    pods.cri.remove_pod(box[0])

    os.rmdir("/sys/fs/cgroup/test-pod")


def test_a_pod_on_the_hosts_network_has_no_network_of_its_own(pods: Pods) -> None:
    def on_host(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.network = api.NODE

    box = pods.sandbox(on_host)
    request = api.PodSandboxStatsRequest(pod_sandbox_id=box[0])
    stats = pods.cri.runtime.PodSandboxStats(request).stats
    assert not stats.linux.HasField("network")
