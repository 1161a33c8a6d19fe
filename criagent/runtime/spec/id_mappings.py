# SPDX-License-Identifier: Apache-2.0
"""User namespaces of pods (KEP-127): which requests are valid, and their OCI form."""

from __future__ import annotations

from collections.abc import Iterable

from criagent.base.errors import InvalidRequestError
from criagent.model.common import (
    IdMapping,
    MountPropagation,
    NamespaceMode,
    NamespaceOptions,
    UserNamespace,
)
from criagent.model.container import ContainerUser, Mount

_NO_ID = 2**32 - 1  # -1, which no file and no process can have


def validate_pod(what: str, namespaces: NamespaceOptions) -> None:
    """Raises InvalidRequestError for an invalid user namespace, or one beside the node's
    namespaces.
    """
    _validate(what, namespaces.userns)
    if namespaces.pod_userns is None:
        return
    for kind in ("pid", "ipc"):
        if getattr(namespaces, kind) is NamespaceMode.NODE:
            raise InvalidRequestError(
                f"{what}: a pod with a user namespace cannot use the node's {kind} namespace"
            )


def validate_container(what: str, asked: NamespaceOptions, pod: NamespaceOptions) -> None:
    """Raises InvalidRequestError unless the container requests its pod's user namespace.

    A container that requests nothing gets it.
    """
    _validate(what, asked.userns)
    if pod.pod_userns is not None and asked.pid is NamespaceMode.NODE:
        raise InvalidRequestError(
            f"{what}: a container of a pod with a user namespace cannot use the node's pid "
            "namespace"
        )
    if asked.userns is None or asked.pod_userns == pod.pod_userns:
        return
    if pod.pod_userns is None:
        raise InvalidRequestError(
            f"{what}: the container requests a user namespace, but its pod has none"
        )
    raise InvalidRequestError(
        f"{what}: the container's user namespace differs from the pod's; set both to the same"
    )


def validate_mount(what: str, mount: Mount, pod: NamespaceOptions) -> None:
    """Raises InvalidRequestError for a mount whose id mappings differ from its pod's."""
    userns = pod.pod_userns
    if userns is not None and mount.propagation is MountPropagation.BIDIRECTIONAL:
        raise InvalidRequestError(
            f"{what}: mount {mount.container_path}: mounts made in a user namespace do not "
            "propagate to the node; use HOST_TO_CONTAINER"
        )
    if not mount.uid_mappings and not mount.gid_mappings:
        return
    if userns is None:
        raise InvalidRequestError(
            f"{what}: mount {mount.container_path}: id mappings need a pod with a user namespace"
        )
    if (mount.uid_mappings, mount.gid_mappings) != (userns.uids, userns.gids):
        raise InvalidRequestError(
            f"{what}: mount {mount.container_path}: the id mappings differ from those of the pod"
        )


def check_user(user: ContainerUser, userns: UserNamespace | None) -> None:
    """Raises InvalidRequestError for an id outside the pod's user namespace."""
    if userns is None:
        return
    if user.uid >= userns.uids[0].length:
        raise InvalidRequestError(
            f"user {user.uid} is outside the {userns.uids[0].length} ids of the pod's user "
            "namespace"
        )
    for gid in (user.gid, *user.groups):
        if gid >= userns.gids[0].length:
            raise InvalidRequestError(
                f"group {gid} is outside the {userns.gids[0].length} ids of the pod's user "
                "namespace"
            )


def oci_mappings(mappings: Iterable[IdMapping]) -> list[dict[str, int]]:
    """`uidMappings` or `gidMappings` of the OCI runtime specification."""
    return [
        {"containerID": m.container_id, "hostID": m.host_id, "size": m.length} for m in mappings
    ]


def _validate(what: str, userns: UserNamespace | None) -> None:
    if userns is None:
        return
    if userns.mode is NamespaceMode.NODE:
        if userns.uids or userns.gids:
            raise InvalidRequestError(
                f"{what}: id mappings are not allowed in the node's user namespace"
            )
        return
    if userns.mode is not NamespaceMode.POD:
        raise InvalidRequestError(
            f"{what}: user namespace mode {userns.mode.name} is not POD or NODE"
        )
    for kind, mappings in (("uids", userns.uids), ("gids", userns.gids)):
        if len(mappings) != 1:
            raise InvalidRequestError(
                f"{what}: user namespace: {len(mappings)} mappings of {kind}; exactly one is "
                "required"
            )
        _validate_mapping(f"{what}: user namespace: {kind}", mappings[0])


def _validate_mapping(what: str, mapping: IdMapping) -> None:
    if mapping.container_id != 0:
        raise InvalidRequestError(
            f"{what}: container id 0 is not mapped: the mapping starts at {mapping.container_id}"
        )
    if mapping.length == 0:
        raise InvalidRequestError(f"{what}: the mapping has the length 0")
    if mapping.host_id == 0:
        raise InvalidRequestError(f"{what}: the mapping would make the node's root the pod's root")
    if mapping.host_id + mapping.length > _NO_ID:
        raise InvalidRequestError(
            f"{what}: host ids {mapping.host_id} and {mapping.length - 1} more exceed the "
            f"limit {_NO_ID - 1}"
        )
