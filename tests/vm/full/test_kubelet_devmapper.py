# SPDX-License-Identifier: Apache-2.0
# vm: programs=kubelet limit=5400 seconds=1500
"""A kubelet's pods and volumes on the storage driver devmapper."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubelet.test_contexts import test_users_and_groups_and_a_volume_of_the_pods_group
from tests.kubelet.test_pods import (
    test_a_pod_without_the_hosts_users,
    test_init_and_sidecar_containers_run_in_their_order,
)
from tests.kubelet.test_volumes import shared_directory, test_an_image_as_a_volume, test_sub_paths
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri
from tests.support.kubelet_fixtures import (
    few_pods,
    host_directory,
    kubelet,
    nothing_leaks,
    session_kubelet,
)
from tests.support.storage_node import service_on

__all__ = [
    "few_pods",
    "host_directory",
    "kubelet",
    "nothing_leaks",
    "session_kubelet",
    "shared_directory",
    "test_a_pod_without_the_hosts_users",
    "test_an_image_as_a_volume",
    "test_init_and_sidecar_containers_run_in_their_order",
    "test_sub_paths",
    "test_users_and_groups_and_a_volume_of_the_pods_group",
]


@pytest.fixture(scope="session", autouse=True)
def images() -> Iterator[None]:
    """They are there before the first state is taken, in a thin pool."""
    with service_on("devmapper", 2 << 30):
        cri = Cri()
        cri.pull(BUSYBOX, timeout=300)
        cri.pull(DEBIAN, timeout=300)
        cri.close()
        yield
