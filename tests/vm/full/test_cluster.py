# SPDX-License-Identifier: Apache-2.0
# vm: memory=6144 limit=10800 programs=etcd,kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubelet,kubectl seconds=5400
# ruff: noqa: E402, E501, F401, F403, I001 - the order of the files is that of the tests
"""The cluster of tests/cluster in the VM: its kubelet is a service, its pods have slices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.register_assert_rewrite(
    *(
        f"tests.cluster.test_{name}"
        for name in ("workloads", "volumes", "services", "streams", "stats", "resize", "unrest")
    )
)

from tests.cluster.cluster_fixtures import cluster, space
from tests.cluster.test_workloads import *
from tests.cluster.test_stats import *
from tests.cluster.test_resize import *
from tests.cluster.test_services import *
from tests.cluster.test_streams import *
from tests.cluster.test_volumes import *
from tests.cluster.test_unrest import *


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Replaced by what `cluster` does: its pods outlive a test."""
