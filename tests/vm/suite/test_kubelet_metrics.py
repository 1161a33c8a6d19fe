# SPDX-License-Identifier: Apache-2.0
"""Metrics of a kubelet with its default gates, with every controller: tests of tests/kubelet."""

# vm: programs=kubelet limit=2400 seconds=500

from __future__ import annotations

from tests.kubelet.test_cadvisor import (
    test_a_pod_of_the_nodes_network_has_none_of_its_own,
    test_a_pod_with_a_shared_pid_namespace_has_its_network,
    test_every_metric_of_a_container_names_its_pod,
    test_every_metric_of_a_pods_network_is_there,
    test_metrics_go_on_after_a_restart_of_the_agent,
    test_the_network_is_counted_on_when_a_container_ends,
    test_the_summary_has_network_and_processes_of_a_pod,
    writer,
)
from tests.support.kubelet_fixtures import (
    host_directory,
    images,
    kubelet,
    nothing_leaks,
    session_kubelet,
)

__all__ = [
    "host_directory",
    "images",
    "kubelet",
    "nothing_leaks",
    "session_kubelet",
    "test_a_pod_of_the_nodes_network_has_none_of_its_own",
    "test_a_pod_with_a_shared_pid_namespace_has_its_network",
    "test_every_metric_of_a_container_names_its_pod",
    "test_every_metric_of_a_pods_network_is_there",
    "test_metrics_go_on_after_a_restart_of_the_agent",
    "test_the_network_is_counted_on_when_a_container_ends",
    "test_the_summary_has_network_and_processes_of_a_pod",
    "writer",
]
