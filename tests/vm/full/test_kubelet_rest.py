# SPDX-License-Identifier: Apache-2.0
"""What tests/vm/suite leaves out of tests/kubelet, in the VM."""

# vm: programs=kubelet limit=7200 seconds=2400

from __future__ import annotations

import pytest

from tests.kubelet.test_agent import pods, test_no_container_notices
from tests.kubelet.test_contexts import (
    test_capabilities_seccomp_and_a_sealed_root,
    test_root_is_refused_where_it_must_not_be,
)
from tests.kubelet.test_gates import (
    gated,
    test_events_go_on_after_a_restart_of_the_agent,
    test_events_tell_of_an_end_and_of_probes,
    test_statistics_are_the_runtimes,
)
from tests.kubelet.test_hooks import (
    test_a_failing_post_start_hook_restarts_its_container,
    test_hooks_by_http,
)
from tests.kubelet.test_namespaces import test_names_and_settings_of_a_pod
from tests.kubelet.test_pod_logs import test_logs_are_read_through_the_kubelet
from tests.kubelet.test_probes import (
    test_a_connection_that_nobody_answers_is_a_failed_probe,
    test_a_startup_probe_holds_the_others_off_and_restarts_at_its_end,
    test_readiness_follows_a_server_that_hangs_and_one_that_closes,
)
from tests.kubelet.test_restarts import (
    test_an_init_container_that_fails_is_retried_before_the_others_start,
)
from tests.kubelet.test_storage import (
    UNUSED,
    tags,
    test_pods_over_their_limits_of_storage_are_noticed,
    test_unused_images_go_when_the_disk_is_short,
)
from tests.kubelet.test_volumes import (
    shared_directory,
    test_an_image_volume_that_cannot_be_had_holds_its_pod,
    test_memory_volumes_and_the_downward_api,
    test_mounts_propagate_as_asked,
)
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri
from tests.support.kubelet_fixtures import (
    few_pods,
    host_directory,
    images,
    kubelet,
    nothing_leaks,
    session_kubelet,
)
from tests.support.kubelet_node import LIMIT_S, Kubelet, sleeper, until

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
    "test_a_failing_post_start_hook_restarts_its_container",
    "test_a_startup_probe_holds_the_others_off_and_restarts_at_its_end",
    "test_an_image_volume_that_cannot_be_had_holds_its_pod",
    "test_an_init_container_that_fails_is_retried_before_the_others_start",
    "test_capabilities_seccomp_and_a_sealed_root",
    "test_events_go_on_after_a_restart_of_the_agent",
    "test_events_tell_of_an_end_and_of_probes",
    "test_hooks_by_http",
    "test_logs_are_read_through_the_kubelet",
    "test_memory_volumes_and_the_downward_api",
    "test_mounts_propagate_as_asked",
    "test_names_and_settings_of_a_pod",
    "test_no_container_notices",
    "test_pods_over_their_limits_of_storage_are_noticed",
    "test_readiness_follows_a_server_that_hangs_and_one_that_closes",
    "test_root_is_refused_where_it_must_not_be",
    "test_statistics_are_the_runtimes",
    "test_unused_images_go_when_the_disk_is_short",
]

pytestmark = pytest.mark.usefixtures("few_pods")


def test_unused_images_go_above_the_threshold(kubelet: Kubelet) -> None:
    """The kubelet looks at its start, before cAdvisor knows the disks, and five minutes later."""
    cri = Cri()
    cri.pull(UNUSED, timeout=300)
    kubelet.add("user", {"containers": [sleeper("main"), sleeper("other", image=DEBIAN)]})
    kubelet.until_ready("user")
    thresholds = {"imageGCHighThresholdPercent": 2, "imageGCLowThresholdPercent": 1}
    kubelet.restart(imageMinimumGCAge="1s", **thresholds)
    until(lambda: UNUSED not in tags(cri), "the removal of the unused image", LIMIT_S)
    assert {BUSYBOX, DEBIAN} <= tags(cri)
    kubelet.restart()
    kubelet.until_ready("user")
    cri.close()
