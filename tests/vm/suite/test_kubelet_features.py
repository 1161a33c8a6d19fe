# SPDX-License-Identifier: Apache-2.0
"""What pods ask a kubelet for most often: these tests of tests/kubelet, in the VM."""

# vm: programs=kubelet limit=2400 seconds=720

from __future__ import annotations

from tests.kubelet.test_contexts import test_users_and_groups_and_a_volume_of_the_pods_group
from tests.kubelet.test_hooks import (
    test_a_sleeping_hook_delays_the_signal,
    test_hooks_by_exec_come_before_the_signal,
)
from tests.kubelet.test_namespaces import (
    test_a_pod_in_the_nodes_namespaces,
    test_a_shared_pid_namespace,
    test_host_ports_are_reached_from_outside,
)
from tests.kubelet.test_pod_logs import test_rotated_logs_miss_no_line_though_the_agent_is_killed
from tests.kubelet.test_probes import (
    test_liveness_restarts_a_container_whose_probe_hangs,
    test_readiness_falls_with_a_hanging_exec_whose_whole_tree_is_killed,
)
from tests.kubelet.test_restarts import (
    test_a_failing_container_backs_off_and_counts,
    test_restart_policies,
)
from tests.kubelet.test_volumes import test_an_image_as_a_volume, test_sub_paths
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
    "test_a_failing_container_backs_off_and_counts",
    "test_a_pod_in_the_nodes_namespaces",
    "test_a_shared_pid_namespace",
    "test_a_sleeping_hook_delays_the_signal",
    "test_an_image_as_a_volume",
    "test_hooks_by_exec_come_before_the_signal",
    "test_host_ports_are_reached_from_outside",
    "test_liveness_restarts_a_container_whose_probe_hangs",
    "test_readiness_falls_with_a_hanging_exec_whose_whole_tree_is_killed",
    "test_restart_policies",
    "test_rotated_logs_miss_no_line_though_the_agent_is_killed",
    "test_sub_paths",
    "test_users_and_groups_and_a_volume_of_the_pods_group",
]
