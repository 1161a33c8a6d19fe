# SPDX-License-Identifier: Apache-2.0
"""What NRI plugins are told of pods and containers: messages, their pieces, annotations."""

from __future__ import annotations

from pathlib import Path

from criagent._proto import nri_pb2 as nri
from criagent.model.common import HugepageLimit, Resources
from criagent.nri import resources
from criagent.nri.messages import container_message, pod_message
from criagent.nri.session import pieces
from criagent.nri.validation import effective
from tests.unit.test_nri_merge import CONTAINER, SANDBOX, SPEC


def test_resources_survive_the_way_to_plugins_and_back() -> None:
    given = Resources(
        cpu_period=1,
        cpu_quota=-1,
        cpu_shares=3,
        memory_limit_in_bytes=4,
        memory_swap_limit_in_bytes=-1,
        cpuset_cpus="0",
        cpuset_mems="1",
        hugepage_limits=(HugepageLimit(page_size="2MB", limit=5),),
        unified={"a.b": "c"},
    )
    assert resources.to_cri(resources.of_cri(given)) == given


def test_the_row_says_which_limits_are_in_force() -> None:
    message = container_message(CONTAINER, SPEC)
    assert message.linux.resources.cpu.shares.value == 2
    assert message.linux.resources.devices[0].access == "rwm"


def test_a_pod_has_its_namespaces_by_their_names_in_oci() -> None:
    message = pod_message(SANDBOX, {"net": Path("/n"), "uts": Path("/u")})
    assert [(one.type, one.path) for one in message.linux.namespaces] == [
        ("network", "/n"),
        ("uts", "/u"),
    ]


def test_the_state_of_a_large_node_comes_in_pieces() -> None:
    pods = [nri.PodSandbox(id=str(number)) for number in range(3000)]
    containers = [nri.Container(id=str(number), args=["x" * 3000]) for number in range(3000)]
    found = pieces(pods, containers)
    assert len(found) == 3
    assert [piece.more for piece in found] == [True, True, False]
    assert all(piece.ByteSize() < (4 << 20) - 1024 for piece in found)
    assert [pod.id for piece in found for pod in piece.pods] == [pod.id for pod in pods]
    assert [one.id for piece in found for one in piece.containers] == [one.id for one in containers]
    assert pieces([], []) == [nri.SynchronizeRequest()]


def test_annotations_of_a_container_come_before_those_of_its_pod() -> None:
    annotations = {"k": "0", "k/pod": "1", "k/container.app": "2"}
    assert effective(annotations, "k", "app") == "2"
    assert effective(annotations, "k", "other") == "1"
    assert effective({"k": "0"}, "k", "other") == "0"
    assert effective({}, "k", "other") is None
