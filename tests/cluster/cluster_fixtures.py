# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of a cluster, which conftests import.

The cluster lives from the first test to the last; afterwards the node is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import Cluster, Space
from tests.cluster.ground import seconds, this_ground
from tests.support.cri_client import BUSYBOX, Cri
from tests.support.node_state import differences, settled_state


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster."""
    cri = Cri()
    cri.pull(BUSYBOX, timeout=seconds(60))
    before = {**settled_state(cri), "failed": this_ground().failed()}
    one = Cluster(tmp_path_factory.mktemp("cluster"))
    yield one
    one.close()
    after = {**settled_state(cri), "failed": this_ground().failed()}
    cri.close()
    for state in (before, after):
        # Marks that the kubelet leaves in the firewall are its own.
        state["nftables"] = [line for line in state["nftables"] if "criagent" in line]
    left = differences(before, after)
    assert left == "", left


@pytest.fixture(scope="module")
def space(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Space]:
    """A namespace for the tests of a file."""
    name = Path(str(request.node.path)).stem.removeprefix("test_")
    one = cluster.space(name)
    yield one
    cluster.plane.check()
    cluster.api.delete(f"api/v1/namespaces/{name}")
