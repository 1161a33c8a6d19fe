# vm: memory=6144 limit=7200 programs=etcd,kube-apiserver,kube-controller-manager,kube-scheduler,kube-proxy,kubelet,kubectl
"""The cluster of tests/cluster in the VM: its kubelet is a service, its pods have slices and limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "cluster"))
pytest.register_assert_rewrite(
    *(f"test_{name}" for name in ("workloads", "volumes", "streams", "services", "stats", "unrest"))
)

from cluster_fixtures import cluster, space  # noqa: E402, F401
from test_workloads import *  # noqa: E402, F403
from test_volumes import *  # noqa: E402, F403, I001
from test_services import *  # noqa: E402, F403
from test_streams import *  # noqa: E402, F403
from test_stats import *  # noqa: E402, F403
from test_unrest import *  # noqa: E402, F403


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Replaced by what `cluster` does: its pods outlive a test."""
