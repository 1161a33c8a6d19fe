# SPDX-License-Identifier: Apache-2.0
"""ExecSync: output, codes, limits, and what is left of the processes."""

from __future__ import annotations

import grpc
import pytest

from tests.support.cri_client import api
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root


def test_output_and_exit_code_come_back(pods: Pods) -> None:
    container_id = pods.running()
    answer = pods.cri.exec(container_id, "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 42)
    assert pods.cri.exec(container_id, "sh", "-c", "kill -15 $$").exit_code == 143


def test_a_time_out_kills_the_whole_tree(pods: Pods) -> None:
    container_id = pods.running()
    script = "(setsid sleep 7777 &) ; sleep 8888 & sleep 9999"
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.exec(container_id, "sh", "-c", script, timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "timed out after 1 s" in (caught.value.details() or "")
    listed = pods.cri.exec(container_id, "ps", "-o", "args").stdout
    assert b"7777" not in listed
    assert b"8888" not in listed
    assert pods.cri.status(container_id).state == api.CONTAINER_RUNNING


def test_a_background_child_outlives_the_exec_but_not_the_container(pods: Pods) -> None:
    container_id = pods.running()
    answer = pods.cri.exec(container_id, "sh", "-c", "sleep 5555 & echo started")
    assert answer.stdout == b"started\n"
    assert b"5555" in pods.cri.exec(container_id, "ps", "-o", "args").stdout
    pods.cri.stop(container_id)


def test_endless_output_is_capped_and_the_agent_stays_small(pods: Pods) -> None:
    container_id = pods.running()
    before = agent_facts()["rss_kb"]
    answer = pods.cri.exec(container_id, "sh", "-c", "head -c 60000000 /dev/zero", timeout=60)
    assert 16_000_000 < len(answer.stdout) <= 16 << 20
    assert answer.exit_code == 0
    until(lambda: agent_facts()["rss_kb"] - before < 80_000, "the memory's return")


def test_both_streams_share_the_room_of_one_message(pods: Pods) -> None:
    container_id = pods.running()
    script = "head -c 20000000 /dev/zero >&2 & head -c 20000000 /dev/zero; wait; exit 3"
    answer = pods.cri.exec(container_id, "sh", "-c", script, timeout=60)
    assert answer.exit_code == 3
    assert min(len(answer.stdout), len(answer.stderr)) > 8_000_000
    assert len(answer.SerializeToString()) < 16 << 20
    little = pods.cri.exec(
        container_id, "sh", "-c", "head -c 20000000 /dev/zero; echo why >&2", timeout=60
    )
    assert little.stderr == b"why\n"
    assert len(little.stdout) > 16_000_000


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "empty"),
        ([""], grpc.StatusCode.INVALID_ARGUMENT, "empty"),
    ],
)
def test_bad_commands_are_refused(
    pods: Pods, command: list[str], code: grpc.StatusCode, words: str
) -> None:
    container_id = pods.running()
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.exec(container_id, *command)
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


def test_an_exec_needs_a_running_container(pods: Pods) -> None:
    container_id = pods.running()
    pods.cri.stop(container_id)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.exec(container_id, "true")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.exec("0" * 64, "true")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_hundred_execs_at_once_leave_nothing(pods: Pods) -> None:
    container_id = pods.running()
    pods.cri.exec(container_id, "true")
    before = agent_facts()
    calls = [
        pods.cri.runtime.ExecSync.future(
            api.ExecSyncRequest(container_id=container_id, cmd=["echo", str(n)], timeout=60),
            timeout=90,
        )
        for n in range(100)
    ]
    assert [call.result().stdout for call in calls] == [f"{n}\n".encode() for n in range(100)]
    until(lambda: agent_facts()["fds"] <= before["fds"] + 4, "descriptors closed")


def test_capabilities_of_an_exec_are_the_containers(pods: Pods) -> None:
    def as_user(config: api.ContainerConfig) -> None:
        config.linux.security_context.run_as_user.value = 1000

    container_id = pods.running(change=as_user)
    status = pods.cri.exec(container_id, "cat", "/proc/self/status").stdout.decode()
    facts = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split()[0] == "1000"
    assert (int(facts["CapInh"], 16), int(facts["CapAmb"], 16)) == (0, 0)
    assert int(facts["CapEff"], 16) == 0
    assert facts["Seccomp"] == "2"
