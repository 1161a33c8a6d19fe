# vm: memory=6144 limit=10800 programs=etcd,kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubelet,kubectl seconds=5400
# ruff: noqa: E402, E501, F401, F403, I001 - the order of the files is that of the tests
"""The cluster of tests/cluster in the VM: its kubelet is a service, its pods have slices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cluster"))
pytest.register_assert_rewrite(
    *(
        f"test_{name}"
        for name in ("workloads", "volumes", "services", "streams", "stats", "resize", "unrest")
    )
)

from cluster_fixtures import cluster, space
from test_workloads import *
from test_stats import *
from test_resize import *
from test_services import *
from test_streams import *
from test_volumes import *
from test_unrest import *


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Replaced by what `cluster` does: its pods outlive a test."""
