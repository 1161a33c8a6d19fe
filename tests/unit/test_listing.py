# SPDX-License-Identifier: Apache-2.0
"""List answers that are joins of bytes, against protobuf's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent._proto import api_pb2
from criagent.cri.listing import Encoded, framed


class Rows:
    """A store of containers."""

    def __init__(self, *containers: api_pb2.Container) -> None:
        self._rows = list(containers)
        self.listeners: list[Callable[[str, api_pb2.Container | None], None]] = []

    def all(self) -> list[api_pb2.Container]:
        return self._rows


def container(name: str, sandbox: str, state: int, **labels: str) -> api_pb2.Container:
    return api_pb2.Container(
        id=name,
        pod_sandbox_id=sandbox,
        state=state,  # type: ignore[arg-type] # a number of CRI's
        labels=labels,
        metadata=api_pb2.ContainerMetadata(name=name),
    )


ROWS = (
    container("aa1", "s1", 0, app="x"),
    container("aa2", "s1", 1, app="x", tier="web"),
    container("bb1", "s2", 1, app="y"),
)


def encoded(
    store: Rows,
    build: Callable[[api_pb2.Container], api_pb2.Container | None] = lambda container: container,
) -> Encoded[api_pb2.Container]:
    return Encoded(store, lambda found: found.id, build, lambda found: found.labels)


@given(st.lists(st.binary(max_size=300) | st.integers(0, 1 << 15).map(bytes), max_size=5))
def test_items_are_framed_as_protobuf_does(payloads: list[bytes]) -> None:
    made = b"".join(framed(payload) for payload in payloads)
    at, found = 0, []
    while at < len(made):
        assert made[at] == 0x0A
        at, length, shift = at + 1, 0, 0
        while True:
            length |= (made[at] & 0x7F) << shift
            shift += 7
            at += 1
            if made[at - 1] < 0x80:
                break
        found.append(made[at : at + length])
        at += length
    assert found == payloads


def test_a_whole_list_is_protobufs_own() -> None:
    items = encoded(Rows(*ROWS))
    answer = api_pb2.ListContainersResponse.FromString(
        b"".join(items.chosen(api_pb2.ContainerFilter()))
    )
    assert answer == api_pb2.ListContainersResponse(containers=ROWS)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (api_pb2.ContainerFilter(id="aa"), ["aa1", "aa2"]),
        (api_pb2.ContainerFilter(id="aa2x"), []),
        (api_pb2.ContainerFilter(pod_sandbox_id="s2"), ["bb1"]),
        (api_pb2.ContainerFilter(state=api_pb2.ContainerStateValue(state=1)), ["aa2", "bb1"]),  # type: ignore[arg-type]
        (api_pb2.ContainerFilter(state=api_pb2.ContainerStateValue()), ["aa1"]),
        (api_pb2.ContainerFilter(label_selector={"app": "x"}), ["aa1", "aa2"]),
        (api_pb2.ContainerFilter(label_selector={"app": "x", "tier": "web"}), ["aa2"]),
        (api_pb2.ContainerFilter(label_selector={"none": ""}), []),
    ],
)
def test_filters_combine(wanted: api_pb2.ContainerFilter, names: list[str]) -> None:
    items = encoded(Rows(*ROWS))
    answer = api_pb2.ListContainersResponse.FromString(b"".join(items.chosen(wanted)))
    assert [found.id for found in answer.containers] == names


def test_changes_of_rows_are_followed() -> None:
    containers = Rows(*ROWS)
    items = encoded(containers, lambda found: found if found.state else None)
    (listener,) = containers.listeners
    listener("aa2", None)
    listener("aa1", container("aa1", "s1", 2))
    answer = b"".join(items.chosen(api_pb2.ContainerFilter()))
    found = api_pb2.ListContainersResponse.FromString(answer).containers
    assert [(one.id, one.state) for one in found] == [("bb1", 1), ("aa1", 2)]
