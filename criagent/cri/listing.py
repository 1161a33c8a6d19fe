"""Ready-made messages of sandboxes, containers and images, rebuilt when their row changes.

A list answer is a filtered join of them: no row is converted and nothing is awaited in a List call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from criagent._proto import api_pb2
from criagent.cri.convert_common import selected

R = TypeVar("R")
M = TypeVar("M")


class Listed(Protocol[R]):
    """A store of rows that tells of changes."""

    @property
    def listeners(self) -> list[Callable[[str, R | None], None]]: ...
    def all(self) -> list[R]: ...


class Messages(Generic[R, M]):
    """One message per row for which `build` gives one, in the order of first appearance."""

    def __init__(
        self, store: Listed[R], key: Callable[[R], str], build: Callable[[R], M | None]
    ) -> None:
        self._build = build
        self._messages: dict[str, M] = {}
        for row in store.all():
            self._changed(key(row), row)
        store.listeners.append(self._changed)

    def all(self) -> Iterable[M]:
        """Every message."""
        return self._messages.values()

    def _changed(self, row_id: str, row: R | None) -> None:
        message = None if row is None else self._build(row)
        if message is None:
            self._messages.pop(row_id, None)
        else:
            self._messages[row_id] = message


def sandboxes(
    messages: Iterable[api_pb2.PodSandbox], wanted: api_pb2.PodSandboxFilter
) -> list[api_pb2.PodSandbox]:
    """Those that fit every part of the filter; an id may be a prefix."""
    labels: Mapping[str, str] = wanted.label_selector
    by_state = wanted.HasField("state")
    if not wanted.id and not labels and not by_state:
        return list(messages)
    return [
        message
        for message in messages
        if message.id.startswith(wanted.id)
        and (not by_state or message.state == wanted.state.state)
        and selected(message.labels, labels)
    ]


def containers(
    messages: Iterable[api_pb2.Container], wanted: api_pb2.ContainerFilter
) -> list[api_pb2.Container]:
    """Those that fit every part of the filter; ids may be prefixes."""
    labels: Mapping[str, str] = wanted.label_selector
    by_state = wanted.HasField("state")
    if not wanted.id and not labels and not by_state and not wanted.pod_sandbox_id:
        return list(messages)
    return [
        message
        for message in messages
        if message.id.startswith(wanted.id)
        and message.pod_sandbox_id.startswith(wanted.pod_sandbox_id)
        and (not by_state or message.state == wanted.state.state)
        and selected(message.labels, labels)
    ]
