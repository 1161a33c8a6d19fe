# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests of the kubelet, on both grounds.

One kubelet serves a whole run, and pods live side by side: waiting for their start and their end
takes most of the time. When the run ends the node must be as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import BUSYBOX, DEBIAN, Cri
from tests.support.kubelet_errors import unexplained
from tests.support.kubelet_node import (
    HOST_DIRECTORIES,
    IN_VM,
    LIMIT_S,
    MANIFESTS,
    Kubelet,
    ground,
    until,
)
from tests.support.node_state import differences, settled_state
from tests.support.units import failed_units, pod_slices, systemctl

CADVISOR_SOCKET = "/run/containerd/containerd.sock"
_CADVISOR = Path("/etc/criagent/config.d/cadvisor.toml")


@pytest.fixture(scope="session", autouse=True)
def images() -> None:
    """The images that tests share are there before the first state is taken."""
    cri = Cri()
    cri.pull(BUSYBOX, timeout=300)
    cri.pull(DEBIAN, timeout=300)
    cri.close()


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Replaced by what `session_kubelet` does: pods outlive a test."""


@pytest.fixture(scope="session")
def session_kubelet(images: None) -> Iterator[Kubelet]:
    """A kubelet for all tests; afterwards the node is as it was."""
    _CADVISOR.parent.mkdir(parents=True, exist_ok=True)
    _CADVISOR.write_text(f'[telemetry]\ncadvisor_socket = "{CADVISOR_SOCKET}"\n')
    ground.restart_agent()  # cAdvisor looks for the socket once, when the kubelet starts
    cri = Cri()
    before = _state(cri)
    service = Kubelet()
    service.start()
    yield service
    service.remove()
    if IN_VM:  # its garbage collection runs once a minute
        until(lambda: not cri.pods(), "the removal of all sandboxes", LIMIT_S)
    service.stop()
    for sandbox in cri.pods():
        cri.remove_pod(sandbox.id)
    if IN_VM:
        for name in pod_slices():
            systemctl("stop", name)
    left = differences(before, _state(cri))
    errors = unexplained(service.journal())
    assert not left, left
    assert not errors, "\n".join(errors)


@pytest.fixture(scope="module")
def kubelet(session_kubelet: Kubelet) -> Iterator[Kubelet]:
    """The kubelet; pods of this file go together when its last test is done."""
    yield session_kubelet
    if any(MANIFESTS.iterdir()):
        session_kubelet.remove()


@pytest.fixture
def few_pods(kubelet: Kubelet) -> Iterator[None]:
    """Pods that a test makes end with it, where forty at once are too much."""
    before = {path.stem for path in MANIFESTS.iterdir()}
    yield
    if made := {path.stem for path in MANIFESTS.iterdir()} - before:
        kubelet.remove(*made)


@pytest.fixture
def host_directory(request: pytest.FixtureRequest) -> Path:
    """A directory of the node, empty, for this test; pods may go on to use it."""
    place = HOST_DIRECTORIES / request.node.name
    place.mkdir(parents=True)
    return place


def _state(cri: Cri) -> dict[str, list[str]]:
    state = settled_state(cri)
    # The kubelet's own: its state and its mark in the firewall.
    state["mounts"] = [line for line in state["mounts"] if "/var/lib/kubelet" not in line]
    state["nftables"] = [line for line in state["nftables"] if "criagent" in line]
    if IN_VM:
        state["failed"] = failed_units()
    return state
