# SPDX-License-Identifier: Apache-2.0
"""Checkpoints with scopes of systemd, on a kernel whose sockets Debian's CRIU can save."""

# vm: seconds=400

from __future__ import annotations

import socket
import tarfile
from pathlib import Path

import pytest

from tests.support.cri_client import Cri, api, container, pod
from tests.support.waiting import until


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_a_tcp_listener_goes_on_with_its_connection(cri: Cri, tmp_path: Path, handler: str) -> None:
    config = pod(f"listener-{handler}", log_directory=str(tmp_path))
    config.linux.cgroup_parent = "kubepods-checkpoint.slice"
    sandbox = cri.run(config, handler=handler)
    container_id = cri.create(
        sandbox, container("c", ["nc", "-ll", "-p", "80", "-e", "cat"]), config
    )
    cri.start(container_id)
    address = cri.pod_status(sandbox).network.ip
    until(lambda: _listens(address), "port 80", 60)
    with socket.create_connection((address, 80), timeout=60) as connection:
        assert _echoed(connection, b"before")
        archive = tmp_path / "checkpoint.tar"
        request = api.CheckpointContainerRequest(container_id=container_id, location=str(archive))
        cri.runtime.CheckpointContainer(request, timeout=300)
        assert _echoed(connection, b"after")
    with socket.create_connection((address, 80), timeout=60) as another:
        assert _echoed(another, b"another")
    with tarfile.open(archive) as tar:
        assert "checkpoint/inventory.img" in tar.getnames()
    assert cri.status(container_id).state == api.CONTAINER_RUNNING


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
