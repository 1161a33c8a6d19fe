# SPDX-License-Identifier: Apache-2.0
"""Many pods, and a file system that never answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import container, pod
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

PODS = 200


def test_two_hundred_pods_leave_the_agent_as_it_was(pods: Pods) -> None:
    def life(number: int) -> None:
        config = pod(f"soak-{number}", log_directory=str(pods.logs))
        sandbox = pods.cri.run(config)
        container_id = pods.cri.create(sandbox, container("main", ["sleep", "1000"]), config)
        pods.cri.start(container_id)
        assert pods.cri.exec(container_id, "true").exit_code == 0
        pods.cri.stop_pod(sandbox)
        pods.cri.remove_pod(sandbox)

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(life, range(1000, 1020)))  # warm
        before = agent_facts()
        list(threads.map(life, range(PODS)))
    assert (pods.cri.pods(), pods.cri.containers()) == ([], [])
    until(lambda: agent_facts()["fds"] <= before["fds"] + 2, "descriptors closed")
    until(lambda: agent_facts()["threads"] <= before["threads"] + 4, "threads ended")
    until(lambda: agent_facts()["rss_kb"] < before["rss_kb"] + 12_000, "memory given back")


# A FUSE server that answers INIT and nothing after it.
DEAD_FUSE = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
if libc.mount(b"dead", sys.argv[1].encode(), b"fuse.dead", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
data = os.read(fd, 1 << 20)
length, opcode, unique = struct.unpack_from("=IIQ", data)
reply = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 12, 10, 4096, 1, 0, 0, 0)
os.write(fd, struct.pack("=IiQ", 16 + len(reply), 0, unique) + reply)
print("mounted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def dead_mount(tmp_path: Path) -> Iterator[Path]:
    """A mount of which every look hangs."""
    target = tmp_path / "dead"
    target.mkdir()
    command = [sys.executable, "-c", DEAD_FUSE, target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:  # type: ignore[arg-type]
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        yield target
        subprocess.run(["umount", "-l", target], check=True)
        server.kill()


def test_a_dead_mount_blocks_nobody_else(pods: Pods, dead_mount: Path) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("dead", ["sleep", "1000"])
    wanted.mounts.add(container_path="/dead", host_path=str(dead_mount / "below"))
    with ThreadPoolExecutor(8) as threads:
        stuck = [
            threads.submit(pods.cri.create, sandbox, _named(wanted, f"dead-{n}"), config, 60)  # type: ignore[arg-type]
            for n in range(6)
        ]
        others = [threads.submit(pods.running) for _ in range(2)]
        for other in others:
            assert pods.cri.exec(other.result(timeout=10), "true").exit_code == 0
        for call in stuck:
            with pytest.raises(grpc.RpcError) as caught:
                call.result(timeout=60)
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "did not answer" in (caught.value.details() or "")
    agent.stop()
    assert not os.path.exists(f"/proc/{Path('/run/criagent.pid').read_text()}/fd/0")
    pods.cri = agent.start()


def _named(config: object, name: str) -> object:
    copy = type(config)()
    copy.CopyFrom(config)  # type: ignore[attr-defined]
    copy.metadata.name = name  # type: ignore[attr-defined]
    return copy
