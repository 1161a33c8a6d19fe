# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint fits what RestorePod was asked for. Pure.

CRIU restores processes with the credentials, namespaces and open files that they had. So whatever
decides about these must be the same in the request; the rest is the request's: names, labels, paths
of volumes and logs, resources, cgroups, addresses, the hostname.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.model.common import NamespaceMode
from criagent.model.container import Container, ContainerSpec
from criagent.model.sandbox import SandboxSpec
from criagent.runtime.checkpoint.manifest import Archived, Manifest

_SAME = ("security", "tty", "stdin", "stdin_once", "devices", "cdi_devices")


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
    """A container of the request, and its checkpoint."""

    spec: ContainerSpec
    archived: Archived

    def check(self, image_id: str, mounts: frozenset[str], archived_mounts: frozenset[str]) -> None:
        """Compare what is known once the container's specification is made.

        Raises InvalidRequestError.
        """
        name, was = self.spec.metadata.name, self.archived.container
        if image_id != was.image_id:
            raise InvalidRequestError(
                f"container {name!r} was checkpointed with image {was.image_id}, but its image is "
                f"now {image_id}; pull the former one"
            )
        if mounts != archived_mounts:
            more = ", ".join(sorted(mounts - archived_mounts)) or "none"
            less = ", ".join(sorted(archived_mounts - mounts)) or "none"
            raise InvalidRequestError(
                f"container {name!r} must have the mounts that it had when it was checkpointed; "
                f"new: {more[:500]}; missing: {less[:500]}"
            )


def paired(
    manifest: Manifest, handler: str, spec: SandboxSpec, containers: Sequence[ContainerSpec]
) -> list[Pair]:
    """The containers of the request in its order, each with its checkpoint.

    Raises InvalidRequestError, UnsupportedError for a pod that cannot be restored.
    """
    if handler != manifest.handler:
        raise InvalidRequestError(
            f'the pod was checkpointed by handler "{manifest.handler}", not "{handler}"'
        )
    _check_pod(manifest.sandbox.spec, spec)
    names = [one.metadata.name for one in containers]
    archived = {one.container.spec.metadata.name: one for one in manifest.containers}
    if len(set(names)) != len(names):
        raise InvalidRequestError("container_configs has a name twice")
    if set(names) != set(archived) or len(archived) != len(manifest.containers):
        raise InvalidRequestError(
            f"the checkpoint has the containers {', '.join(sorted(archived))[:500]}, but "
            f"container_configs has {', '.join(sorted(names))[:500] or 'none'}"
        )
    for one in containers:
        _check_container(archived[one.metadata.name].container, one)
    return [Pair(one, archived[one.metadata.name]) for one in containers]


def _check_pod(was: SandboxSpec, spec: SandboxSpec) -> None:
    for field, before, now in (
        ("namespace_options", was.security.namespaces, spec.security.namespaces),
        ("sysctls", was.sysctls, spec.sysctls),
    ):
        if before != now:
            raise InvalidRequestError(f"config: {field} differs from the checkpointed pod's")
    if spec.security.namespaces.pod_userns is not None:
        raise UnsupportedError("a pod with a user namespace cannot be restored")


def _check_container(was: Container, spec: ContainerSpec) -> None:
    name = spec.metadata.name
    for field in _SAME:
        if getattr(was.spec, field) != getattr(spec, field):
            raise InvalidRequestError(
                f"container {name!r}: {field} differs from the checkpointed container's"
            )
    if spec.security.namespaces.pid is not NamespaceMode.CONTAINER:
        raise UnsupportedError(
            f"container {name!r} shares a PID namespace; a pod can be restored if each container "
            "has one of its own"
        )
