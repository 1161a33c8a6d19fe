# SPDX-License-Identifier: Apache-2.0
"""Who set what: no two plugins may set one field of a container, unless the later removes it first.

An owner is a plugin's name; one with "-" before it is a plugin that removed what another had set,
and which alone may set it again.
"""

from __future__ import annotations

from collections import defaultdict

from criagent._proto import nri_pb2

Field = nri_pb2.Names.Field


class ConflictError(Exception):
    """Two plugins set the same field."""


class Owners:
    """The owners of fields, by container. Fields of lists and maps have an owner for each key."""

    def __init__(self) -> None:
        self._simple: dict[tuple[str, int], str] = {}
        self._keyed: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)

    def claim(self, container_id: str, field: int, plugin: str, key: str | None = None) -> None:
        """Make `plugin` the owner. Raises ConflictError if another one is."""
        owner = self.owner(container_id, field, key).removeprefix("-")
        if owner and (owner != plugin or not self._cleared(container_id, field, key)):
            what = Field.Name(field) + ("" if key is None else f" {key[:200]!r}")
            raise ConflictError(f"{owner} and {plugin} both set {what}")
        self._set(container_id, field, key, plugin)

    def clear(self, container_id: str, field: int, plugin: str, key: str | None = None) -> None:
        """Note that `plugin` removes what others have set."""
        self._set(container_id, field, key, f"-{plugin}")

    def add(self, container_id: str, field: int, plugin: str) -> None:
        """Make `plugin` one more owner of a field that several may add to."""
        others = self._simple.get((container_id, field))
        self._simple[container_id, field] = f"{others},{plugin}" if others else plugin

    def owner(self, container_id: str, field: int, key: str | None = None) -> str:
        """The owner, "" = none."""
        if key is None:
            return self._simple.get((container_id, field), "")
        return self._keyed.get((container_id, field), {}).get(key, "")

    def keyed(self, container_id: str, field: int) -> dict[str, str]:
        """The owner of each key."""
        return dict(self._keyed.get((container_id, field), {}))

    def message(self) -> nri_pb2.OwningPlugins:
        """What validators get."""
        message = nri_pb2.OwningPlugins()
        for (container_id, field), owner in self._simple.items():
            message.owners[container_id].simple[field] = owner
        for (container_id, field), owners in self._keyed.items():
            message.owners[container_id].compound[field].owners.update(owners)
        return message

    def _cleared(self, container_id: str, field: int, key: str | None) -> bool:
        return self.owner(container_id, field, key).startswith("-")

    def _set(self, container_id: str, field: int, key: str | None, owner: str) -> None:
        if key is None:
            self._simple[container_id, field] = owner
        else:
            self._keyed[container_id, field][key] = owner
