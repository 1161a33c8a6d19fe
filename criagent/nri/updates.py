# SPDX-License-Identifier: Apache-2.0
"""Updates of running containers that plugins ask for in their answers, merged by container."""

from __future__ import annotations

from collections.abc import Iterable

from criagent._proto import nri_pb2
from criagent.nri import resources
from criagent.nri.owners import ConflictError, Owners


class Updates:
    """What several plugins ask for while one call is served."""

    def __init__(self, owners: Owners | None = None, *, creating: str = "") -> None:
        self._owners = owners or Owners()
        self._creating = creating
        self._found: dict[str, nri_pb2.ContainerUpdate] = {}

    @property
    def all(self) -> list[nri_pb2.ContainerUpdate]:
        """One update for each container."""
        return list(self._found.values())

    def apply(self, given: Iterable[nri_pb2.ContainerUpdate], plugin: str) -> None:
        """Add what `plugin` asks for.

        Raises ConflictError when another plugin has set the same field, unless the update says that
        its failure does not matter, and for an update of the container that is being created.
        """
        for update in given:
            if update.container_id == self._creating:
                raise ConflictError(
                    f"{plugin} updates the container that is being created; it has to adjust it"
                )
            known = self._found.get(update.container_id)
            merged = nri_pb2.ContainerUpdate(
                container_id=update.container_id, ignore_failure=update.ignore_failure
            )
            if known is not None:
                merged.CopyFrom(known)
                merged.ignore_failure = known.ignore_failure and update.ignore_failure
            try:
                resources.merge(
                    update.linux.resources,
                    merged.linux.resources,
                    owners=self._owners,
                    container_id=update.container_id,
                    plugin=plugin,
                )
            except ConflictError:
                if not update.ignore_failure:
                    raise
            else:
                self._found[update.container_id] = merged

    def of(self, container_id: str) -> nri_pb2.ContainerUpdate | None:
        """The update of that container."""
        return self._found.get(container_id)

    def take(self, container_id: str) -> nri_pb2.ContainerUpdate | None:
        """The update of that container, which is no longer among the others."""
        return self._found.pop(container_id, None)
