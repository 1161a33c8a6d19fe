# SPDX-License-Identifier: Apache-2.0
"""Many containers: lists and statistics, and who has priority."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cri_client import api, container
from tests.support.node_state import agent_pid
from tests.support.pods import Pods
from tests.support.waiting import content, until

pytestmark = pytest.mark.root


def last_pid() -> int:
    return int(Path("/proc/sys/kernel/ns_last_pid").read_text())


def test_lists_and_statistics_of_many_start_no_process(pods: Pods) -> None:
    sandbox, config = pods.sandbox()

    def create(number: int) -> str:
        container_id = pods.cri.create(
            sandbox, container(f"m{number}", ["sleep", "100000"]), config
        )
        pods.cri.start(container_id)
        return container_id

    with ThreadPoolExecutor(8) as threads:
        container_ids = set(threads.map(create, range(150)))
    stats = api.ListContainerStatsRequest()
    pods.cri.runtime.ListContainerStats(stats)  # threads of the agent and of this client are there

    def rounds_without_a_process() -> bool:
        """Or a thread; others of this node may start one in between."""
        before = last_pid()
        for _ in range(5):
            found = pods.cri.runtime.ListContainerStats(stats).stats
            assert {one.attributes.id for one in found} == container_ids
            assert all(one.cpu.usage_core_nano_seconds.value for one in found)
            assert {container_id.id for container_id in pods.cri.containers()} == container_ids
        return last_pid() == before

    until(rounds_without_a_process, "calls that start nothing")
    streamed = [
        container_id.id
        for piece in pods.cri.runtime.StreamContainers(api.StreamContainersRequest())
        for container_id in piece.containers
    ]
    assert sorted(streamed) == sorted(container_ids)


def test_the_agent_has_priority_and_gives_it_to_nobody(pods: Pods) -> None:
    container_id = pods.running()
    agent = agent_pid()
    assert os.getpriority(os.PRIO_PROCESS, agent) == -10
    for process in ("self", "1"):  # of an exec, and of the container
        found = pods.cri.exec(container_id, "cut", "-d", " ", "-f", "19", f"/proc/{process}/stat")
        assert found.stdout == b"0\n"
    monitors = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/comm")
        if content(path) == b"conmon\n"
    ]
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in monitors} == {0}
