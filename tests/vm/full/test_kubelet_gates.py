# SPDX-License-Identifier: Apache-2.0
"""The tests of tests/kubelet once more, with statistics and events from the runtime alone."""

# vm: programs=kubelet limit=7200 seconds=4000

from __future__ import annotations

import os

import pytest

from tests.kubelet.test_agent import pods, test_no_container_notices
from tests.kubelet.test_contexts import (
    test_capabilities_seccomp_and_a_sealed_root,
    test_root_is_refused_where_it_must_not_be,
    test_users_and_groups_and_a_volume_of_the_pods_group,
)
from tests.kubelet.test_gates import (
    gated,
    test_events_go_on_after_a_restart_of_the_agent,
    test_events_tell_of_an_end_and_of_probes,
    test_statistics_are_the_runtimes,
)
from tests.kubelet.test_hooks import (
    test_a_failing_post_start_hook_restarts_its_container,
    test_a_sleeping_hook_delays_the_signal,
    test_hooks_by_exec_come_before_the_signal,
    test_hooks_by_http,
)
from tests.kubelet.test_namespaces import (
    test_a_pod_in_the_nodes_namespaces,
    test_a_shared_pid_namespace,
    test_host_ports_are_reached_from_outside,
    test_names_and_settings_of_a_pod,
)
from tests.kubelet.test_pod_logs import (
    test_logs_are_read_through_the_kubelet,
    test_rotated_logs_miss_no_line_though_the_agent_is_killed,
)
from tests.kubelet.test_pods import (
    test_a_pod_without_the_hosts_users,
    test_init_and_sidecar_containers_run_in_their_order,
)
from tests.kubelet.test_probes import (
    test_a_connection_that_nobody_answers_is_a_failed_probe,
    test_a_startup_probe_holds_the_others_off_and_restarts_at_its_end,
    test_liveness_restarts_a_container_whose_probe_hangs,
    test_readiness_falls_with_a_hanging_exec_whose_whole_tree_is_killed,
    test_readiness_follows_a_server_that_hangs_and_one_that_closes,
)
from tests.kubelet.test_restarts import (
    test_a_failing_container_backs_off_and_counts,
    test_an_init_container_that_fails_is_retried_before_the_others_start,
    test_restart_policies,
)
from tests.kubelet.test_storage import (
    test_pods_over_their_limits_of_storage_are_noticed,
    test_unused_images_go_when_the_disk_is_short,
)
from tests.kubelet.test_volumes import (
    shared_directory,
    test_an_image_as_a_volume,
    test_an_image_volume_that_cannot_be_had_holds_its_pod,
    test_memory_volumes_and_the_downward_api,
    test_mounts_propagate_as_asked,
    test_sub_paths,
)
from tests.support.kubelet_fixtures import (
    few_pods,
    host_directory,
    images,
    kubelet,
    nothing_leaks,
    session_kubelet,
)

__all__ = [
    "few_pods",
    "gated",
    "host_directory",
    "images",
    "kubelet",
    "nothing_leaks",
    "pods",
    "session_kubelet",
    "shared_directory",
    "test_a_connection_that_nobody_answers_is_a_failed_probe",
    "test_a_failing_container_backs_off_and_counts",
    "test_a_failing_post_start_hook_restarts_its_container",
    "test_a_pod_in_the_nodes_namespaces",
    "test_a_pod_without_the_hosts_users",
    "test_a_shared_pid_namespace",
    "test_a_sleeping_hook_delays_the_signal",
    "test_a_startup_probe_holds_the_others_off_and_restarts_at_its_end",
    "test_an_image_as_a_volume",
    "test_an_image_volume_that_cannot_be_had_holds_its_pod",
    "test_an_init_container_that_fails_is_retried_before_the_others_start",
    "test_capabilities_seccomp_and_a_sealed_root",
    "test_events_go_on_after_a_restart_of_the_agent",
    "test_events_tell_of_an_end_and_of_probes",
    "test_hooks_by_exec_come_before_the_signal",
    "test_hooks_by_http",
    "test_host_ports_are_reached_from_outside",
    "test_init_and_sidecar_containers_run_in_their_order",
    "test_liveness_restarts_a_container_whose_probe_hangs",
    "test_logs_are_read_through_the_kubelet",
    "test_memory_volumes_and_the_downward_api",
    "test_mounts_propagate_as_asked",
    "test_names_and_settings_of_a_pod",
    "test_no_container_notices",
    "test_pods_over_their_limits_of_storage_are_noticed",
    "test_readiness_falls_with_a_hanging_exec_whose_whole_tree_is_killed",
    "test_readiness_follows_a_server_that_hangs_and_one_that_closes",
    "test_restart_policies",
    "test_root_is_refused_where_it_must_not_be",
    "test_rotated_logs_miss_no_line_though_the_agent_is_killed",
    "test_statistics_are_the_runtimes",
    "test_sub_paths",
    "test_unused_images_go_when_the_disk_is_short",
    "test_users_and_groups_and_a_volume_of_the_pods_group",
]

pytestmark = pytest.mark.usefixtures("few_pods")

os.environ["CRIAGENT_KUBELET_GATES"] = "PodAndContainerStatsFromCRI EventedPLEG"
