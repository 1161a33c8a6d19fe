# SPDX-License-Identifier: Apache-2.0
"""RestorePod with scopes of systemd, on a kernel whose sockets Debian's CRIU can save."""

# vm: seconds=900

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.checkpoints import CheckpointedPod, goes_on, restore, start
from tests.support.cri_client import Cri, api
from tests.support.pods import Pods
from tests.support.waiting import until

_SLICE = "kubepods-restore.slice"


@pytest.fixture
def pods(cri: Cri, tmp_path: Path, request: pytest.FixtureRequest) -> Pods:
    return Pods(cri, tmp_path, request.node.name[:40].replace("[", "-").replace("]", ""))


@pytest.mark.parametrize("handler", ["runc", "crun"])
def test_a_listener_and_a_counter_go_on_in_a_new_pod(
    cri: Cri, pods: Pods, tmp_path: Path, handler: str
) -> None:
    """The connection of the old pod is closed; another one is answered at the new address."""
    old = CheckpointedPod(pods, handler, linux=api.LinuxPodSandboxConfig(cgroup_parent=_SLICE))
    old.add("nc", "-ll", "-p", "80", "-e", "cat")
    counter = old.add()
    address = cri.pod_status(old.sandbox).network.ip
    until(lambda: _listens(address), "port 80", 60)
    goes_on(pods, counter)
    with socket.create_connection((address, 80), timeout=60) as connection:
        assert _echoed(connection, b"before")
        old.checkpoint(tmp_path / "output", timeout=300)
        assert _echoed(connection, b"after")
    old.remove()
    sandbox, ids = restore(pods, old.request(tmp_path / "output"), timeout=300)
    start(pods, ids)
    new = cri.pod_status(sandbox).network.ip
    assert new not in {"", address}
    until(lambda: _listens(new), "port 80 of the new pod", 60)
    with socket.create_connection((new, 80), timeout=60) as connection:
        assert _echoed(connection, b"again")
    goes_on(pods, ids[1])
    scope = next(Path("/sys/fs/cgroup/kubepods.slice").rglob(f"*{ids[1]}.scope"))
    assert scope.parent.name == _SLICE
    assert (scope / "cgroup.procs").read_text() or list(scope.rglob("cgroup.procs"))
    cri.stop(ids[1])
    assert cri.status(ids[1]).exit_code == 137
    cri.remove_pod(sandbox)


def _listens(address: str) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex((address, 80)) == 0


def _echoed(connection: socket.socket, words: bytes) -> bool:
    connection.sendall(words)
    found = b""
    while len(found) < len(words):
        piece = connection.recv(100)
        assert piece, found
        found += piece
    return found == words
