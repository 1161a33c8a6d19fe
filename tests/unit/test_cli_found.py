# SPDX-License-Identifier: Apache-2.0
"""Which pod or container a typed id or name means."""

from __future__ import annotations

import pytest

from criagent._proto import api_pb2 as api
from criagent.cli.containers.calls import CommandError
from criagent.cli.containers.found import container_of, container_or_pod, pod_of

PODS = [  # the newest first
    api.PodSandbox(
        id=first * 64, metadata=api.PodSandboxMetadata(name=name, namespace=space, attempt=attempt)
    )
    for first, name, space, attempt in (
        ("a", "web", "shop", 1),
        ("b", "web", "shop", 0),
        ("c", "db", "shop", 0),
        ("d", "db", "data", 0),
        ("e", "e1", "shop", 0),
    )
]
CONTAINERS = [
    api.Container(
        id=start.ljust(64, "0"),
        pod_sandbox_id=pod * 64,
        metadata=api.ContainerMetadata(name=name, attempt=attempt),
    )
    for start, pod, name, attempt in (
        ("11", "a", "main", 2),
        ("12", "a", "main", 1),
        ("13", "b", "main", 0),
        ("21", "c", "main", 0),
        ("31", "a", "side", 0),
        ("41", "a", "31", 0),
        ("51", "e", "e1", 0),
    )
]


@pytest.mark.parametrize(
    ("text", "first"),
    [("a" * 64, "a"), ("aaa", "a"), ("web", "a"), ("shop/web", "a"), ("data/db", "d"), ("b", "b")],
)
def test_a_pod_by_id_prefix_or_name(text: str, first: str) -> None:
    assert pod_of(text, PODS).id == first * 64


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("11".ljust(64, "0"), "11"),
        ("12", "12"),
        ("web/main", "11"),
        ("shop/web/main", "11"),
        ("db/main", "21"),
        ("side", "31"),
    ],
)
def test_a_container_by_id_prefix_or_name(text: str, start: str) -> None:
    assert container_of(text, CONTAINERS, PODS).id == start.ljust(64, "0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1", "ambiguous"),
        ("main", "shop/db/main"),
        ("31", "shop/web/31"),  # one's name and the beginning of another's id
        ("none", "no container 'none'"),
        ("", "no container ''"),
    ],
)
def test_a_container_that_is_not_clear_is_an_error(text: str, said: str) -> None:
    with pytest.raises(CommandError, match=said):
        container_of(text, CONTAINERS, PODS)


def test_either_kind_is_found_unless_both_match() -> None:
    assert container_or_pod("side", CONTAINERS, PODS).id.startswith("31")
    assert container_or_pod("web", CONTAINERS, PODS).id.startswith("a")
    with pytest.raises(CommandError, match="a container and a pod"):
        container_or_pod("e1", CONTAINERS, PODS)
    with pytest.raises(CommandError, match="no container or pod"):
        container_or_pod("none", CONTAINERS, PODS)
