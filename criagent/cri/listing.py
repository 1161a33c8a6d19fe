# SPDX-License-Identifier: Apache-2.0
"""Encoded list items, rebuilt when their row changes.

Sandboxes and containers are stored as they go over the wire, so a list answer is a join of bytes:
no row is converted, no message is copied and nothing is awaited in a List call.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from criagent._proto import api_pb2
from criagent.cri.convert.common import selected

R = TypeVar("R")
M = TypeVar("M")
T = TypeVar("T")

_CHUNK = 100  # items of a streamed list at once
_LENGTH_DELIMITED = 2  # protobuf's wire type of messages


class Listed(Protocol[R]):
    """A store of rows that reports changes."""

    @property
    def listeners(self) -> list[Callable[[str, R | None], None]]: ...
    def all(self) -> list[R]: ...


class Messages(Generic[R, M]):
    """One message per row for which `build` returns one, in the order of first appearance."""

    def __init__(
        self, store: Listed[R], key: Callable[[R], str], build: Callable[[R], M | None]
    ) -> None:
        self._build = build
        self._store = store
        self._key = key
        self._messages: dict[str, M] = {}
        for container in store.all():
            self._changed(key(container), container)
        store.listeners.append(self._changed)

    def all(self) -> Iterable[M]:
        """Every message."""
        return self._messages.values()

    def rebuild(self) -> None:
        """Build every message again, after what `build` looks at beside the rows has changed."""
        for container in self._store.all():
            self._changed(self._key(container), container)

    def _changed(self, object_id: str, container: R | None) -> None:
        message = None if container is None else self._build(container)
        if message is None:
            self._messages.pop(object_id, None)
        else:
            self._messages[object_id] = message


@dataclasses.dataclass(frozen=True, slots=True)
class _Item:
    """One item: the fields that filters read, and its bytes within a list answer."""

    id: str
    sandbox_id: str
    state: int
    labels: Mapping[str, str]
    encoded: bytes


def _item(
    message: api_pb2.PodSandbox | api_pb2.Container | None, labels: Mapping[str, str]
) -> _Item | None:
    if message is None:
        return None
    return _Item(
        id=message.id,
        sandbox_id=message.pod_sandbox_id if isinstance(message, api_pb2.Container) else "",
        state=message.state,
        labels=labels,
        encoded=framed(message.SerializeToString()),
    )


class Encoded(Generic[R]):
    """Sandboxes or containers as bytes of a list answer. `labels` are those of a row."""

    def __init__(
        self,
        store: Listed[R],
        key: Callable[[R], str],
        build: Callable[[R], api_pb2.PodSandbox | api_pb2.Container | None],
        labels: Callable[[R], Mapping[str, str]],
    ) -> None:
        self._items = Messages[R, _Item](
            store, key, lambda found: _item(build(found), labels(found))
        )

    def chosen(self, wanted: api_pb2.PodSandboxFilter | api_pb2.ContainerFilter) -> list[bytes]:
        """Items that match every part of the filter; ids may be prefixes."""
        sandbox = wanted.pod_sandbox_id if isinstance(wanted, api_pb2.ContainerFilter) else ""
        by_state = wanted.HasField("state")
        if not (wanted.id or sandbox or by_state or wanted.label_selector):
            return [item.encoded for item in self._items.all()]
        prefix, state, labels = wanted.id, wanted.state.state, dict(wanted.label_selector)
        return [
            item.encoded
            for item in self._items.all()
            if item.id.startswith(prefix)
            and item.sandbox_id.startswith(sandbox)
            and (not by_state or item.state == state)
            and selected(item.labels, labels)
        ]


def framed(message: bytes, field: int = 1) -> bytes:
    """An encoded message as an item of `field`, which is below 16; 1 = that of all list answers."""
    length, rest = bytearray((field << 3 | _LENGTH_DELIMITED,)), len(message)
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return bytes(length) + message


def pieces(items: Sequence[T]) -> list[Sequence[T]]:
    """`items` in the chunks of a streamed list."""
    return [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]
