# SPDX-License-Identifier: Apache-2.0
"""Container and pod metrics with the kubelet's default gates: from cAdvisor, by pod.

cAdvisor in the kubelet asks a containerd whose container a cgroup is; criagent answers on
`telemetry.cadvisor_socket`. The names are those of Kubernetes' own test of container metrics
(test/e2e_node/container_metrics_test.go); natively there is no memory and no io controller.
"""

from __future__ import annotations

import re

import pytest

from tests.support.cri_client import BUSYBOX
from tests.support.kubelet_node import (
    IN_VM,
    LIMIT_S,
    NODE,
    Json,
    Kubelet,
    ground,
    ids,
    ready,
    run,
    shell,
    until,
)

_ANYWHERE = """
container_cpu_system_seconds_total container_cpu_usage_seconds_total
container_cpu_user_seconds_total container_file_descriptors container_last_seen
container_oom_events_total container_processes container_sockets container_start_time_seconds
container_threads container_threads_max container_ulimits_soft
""".split()
_WITH_CONTROLLERS = """
container_blkio_device_usage_total container_fs_reads_bytes_total container_fs_reads_total
container_fs_writes_bytes_total container_fs_writes_total container_memory_cache
container_memory_failcnt container_memory_failures_total container_memory_mapped_file
container_memory_max_usage_bytes container_memory_rss container_memory_swap
container_memory_usage_bytes container_memory_working_set_bytes container_spec_cpu_period
container_spec_cpu_shares container_spec_memory_limit_bytes
container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
""".split()
_NETWORK = """
container_network_receive_bytes_total container_network_receive_errors_total
container_network_receive_packets_dropped_total container_network_receive_packets_total
container_network_transmit_bytes_total container_network_transmit_errors_total
container_network_transmit_packets_dropped_total container_network_transmit_packets_total
""".split()
_WRITING = "while :; do dd if=/dev/zero of=/file bs=4k count=16 conv=fsync 2>&-; sleep 1; done"


def _series(metrics: str, metric: str, pod: str, **labels: str) -> list[float]:
    """Values of the metric's series for the pod whose labels have these values."""
    found = []
    for line in re.findall(rf"^{metric}{{.*$", metrics, re.MULTILINE):
        wanted = {"namespace": "default", "pod": f"{pod}-{NODE}", **labels}
        if all(f'{key}="{value}"' in line for key, value in wanted.items()):
            found.append(float(line.rpartition("}")[2].split()[0]))
    return found


def _until_network(kubelet: Kubelet, pod: str, least: float = 0) -> float:
    """Bytes that cAdvisor says the pod has sent by eth0, once they are `least`."""
    found: list[float] = []

    def look() -> bool:
        metrics = kubelet.text("/metrics/cadvisor")
        name = "container_network_transmit_bytes_total"
        found[:] = _series(metrics, name, pod, interface="eth0")
        return bool(found) and found[0] >= least

    until(look, f"{pod}'s network in cAdvisor's metrics", LIMIT_S)
    (value,) = found
    return value


@pytest.fixture(scope="module")
def writer(kubelet: Kubelet) -> Json:
    limits = {"limits": {"memory": "80Mi", "cpu": "500m"}, "requests": {"cpu": "10m"}}
    containers = [shell("main", _WRITING, resources=limits), shell("second", "exec sleep 1000000")]
    kubelet.add("writer", {"containers": containers})
    return kubelet.until_ready("writer")


def test_every_metric_of_a_container_names_its_pod(kubelet: Kubelet, writer: Json) -> None:
    wanted = [*_ANYWHERE, *(_WITH_CONTROLLERS if IN_VM else ())]
    missing: list[str] = []

    def look() -> bool:
        metrics = kubelet.text("/metrics/cadvisor")
        missing[:] = [
            f"{name} of {container}"
            for name in wanted
            for container in ("main", "second")
            if not _series(metrics, name, "writer", container=container)
        ]
        return not missing

    try:
        until(look, "every metric", LIMIT_S)
    except AssertionError:
        pytest.fail(f"not in /metrics/cadvisor: {missing}")
    metrics = kubelet.text("/metrics/cadvisor")
    cpu = "container_cpu_usage_seconds_total"
    main = ids(writer)["main"].removeprefix("criagent://")
    (value,) = _series(metrics, cpu, "writer", container="main", image=BUSYBOX, name=main)
    assert value > 0


def test_every_metric_of_a_pods_network_is_there(kubelet: Kubelet, writer: Json) -> None:
    _until_network(kubelet, "writer")
    metrics = kubelet.text("/metrics/cadvisor")
    for name in _NETWORK:
        assert len(_series(metrics, name, "writer", interface="eth0")) == 1, name
    (received,) = _series(
        metrics, "container_network_receive_bytes_total", "writer", interface="eth0"
    )
    now = int(run(writer, "main", "cat", "/sys/class/net/eth0/statistics/rx_bytes"))
    assert 0 < received <= now


def test_the_summary_has_network_and_processes_of_a_pod(kubelet: Kubelet, writer: Json) -> None:
    _until_network(kubelet, "writer")

    def look() -> bool:
        pods = kubelet.get("/stats/summary")["pods"]
        (pod,) = [pod for pod in pods if pod["podRef"]["name"] == f"writer-{NODE}"]
        network, processes = pod.get("network", {}), pod.get("process_stats", {})
        # cAdvisor takes a container without memory figures for an ended one.
        counted = processes.get("process_count", 0) >= 2 or not IN_VM
        return network.get("name") == "eth0" and counted

    until(look, "network and processes in /stats/summary", LIMIT_S)


def test_the_network_is_counted_on_when_a_container_ends(kubelet: Kubelet) -> None:
    send = "ping -c 3 -W 1 10.88.0.1 > /dev/null 2>&1"
    ending = "while [ ! -e /dev/shm/end ]; do sleep 0.1; done; exit 3"
    kubelet.add(
        "changing",
        {
            "restartPolicy": "Never",
            "containers": [shell("first", ending), shell("later", "exec sleep 1000000")],
        },
    )
    pod = kubelet.until_ready("changing")
    sent = _until_network(kubelet, "changing")
    run(pod, "later", "touch", "/dev/shm/end")
    kubelet.until("changing", lambda pod: not ready(pod), "the end of a container")
    run(pod, "later", "sh", "-c", f"{send}; true")
    _until_network(kubelet, "changing", sent + 1)


def test_metrics_go_on_after_a_restart_of_the_agent(kubelet: Kubelet, writer: Json) -> None:
    sent = _until_network(kubelet, "writer")
    ground.restart_agent()
    run(writer, "main", "sh", "-c", "ping -c 3 -W 1 10.88.0.1 > /dev/null 2>&1; true")
    _until_network(kubelet, "writer", sent + 1)
    metrics = kubelet.text("/metrics/cadvisor")
    assert _series(metrics, "container_cpu_usage_seconds_total", "writer", container="main")


def test_a_pod_with_a_shared_pid_namespace_has_its_network(kubelet: Kubelet) -> None:
    kubelet.add(
        "sharing",
        {"shareProcessNamespace": True, "containers": [shell("main", "exec sleep 1000000")]},
    )
    kubelet.until_ready("sharing")
    _until_network(kubelet, "sharing")


def test_a_pod_of_the_nodes_network_has_none_of_its_own(kubelet: Kubelet, writer: Json) -> None:
    kubelet.add(
        "on-the-node", {"hostNetwork": True, "containers": [shell("main", "exec sleep 1000000")]}
    )
    kubelet.until_ready("on-the-node")

    def cpu() -> list[float]:
        metrics = kubelet.text("/metrics/cadvisor")
        return _series(metrics, "container_cpu_usage_seconds_total", "on-the-node")

    until(cpu, "its processor time", LIMIT_S)
    metrics = kubelet.text("/metrics/cadvisor")
    assert not _series(metrics, _NETWORK[0], "on-the-node")
