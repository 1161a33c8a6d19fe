# SPDX-License-Identifier: Apache-2.0
"""User namespaces: what may be asked for by pods, containers and mounts."""

from __future__ import annotations

import dataclasses

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.model.common import (
    IdMapping,
    MountPropagation,
    NamespaceMode,
    NamespaceOptions,
    UserNamespace,
)
from criagent.model.container import ContainerUser, Mount
from criagent.runtime.spec.id_mappings import (
    check_user,
    oci_mappings,
    validate_container,
    validate_mount,
    validate_pod,
)

ONE = IdMapping(host_id=65536, container_id=0, length=65536)
USERNS = UserNamespace(mode=NamespaceMode.POD, uids=(ONE,), gids=(ONE,))
MAPPED = NamespaceOptions(userns=USERNS)
NODE = NamespaceOptions(userns=UserNamespace(mode=NamespaceMode.NODE))


def mapped(**fields: int) -> UserNamespace:
    changed = dataclasses.replace(ONE, **fields)
    return UserNamespace(mode=NamespaceMode.POD, uids=(changed,), gids=(changed,))


@pytest.mark.parametrize(
    "options",
    [
        NamespaceOptions(),
        NODE,
        MAPPED,
        NamespaceOptions(userns=mapped(length=1)),
        NamespaceOptions(userns=mapped(host_id=1000, length=100_000)),
        NamespaceOptions(userns=mapped(host_id=2**32 - 1 - 65536)),
        dataclasses.replace(MAPPED, pid=NamespaceMode.CONTAINER),
        dataclasses.replace(NODE, network=NamespaceMode.NODE, pid=NamespaceMode.NODE),
    ],
)
def test_what_the_kubelet_sends_is_taken(options: NamespaceOptions) -> None:
    validate_pod("pod", options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (NamespaceOptions(userns=UserNamespace(mode=NamespaceMode.TARGET)), "mode TARGET"),
        (NamespaceOptions(userns=UserNamespace(mode=NamespaceMode.CONTAINER)), "mode CONTAINER"),
        (NamespaceOptions(userns=UserNamespace(mode=NamespaceMode.POD)), "0 mappings of uids"),
        (
            NamespaceOptions(userns=dataclasses.replace(USERNS, gids=())),
            "0 mappings of gids",
        ),
        (
            NamespaceOptions(userns=dataclasses.replace(USERNS, uids=(ONE, ONE))),
            "2 mappings of uids",
        ),
        (
            NamespaceOptions(userns=dataclasses.replace(USERNS, mode=NamespaceMode.NODE)),
            "id mappings",
        ),
        (NamespaceOptions(userns=mapped(container_id=1)), "container id 0 is not mapped"),
        (NamespaceOptions(userns=mapped(length=0)), "length 0"),
        (NamespaceOptions(userns=mapped(host_id=0)), "the node's root"),
        (NamespaceOptions(userns=mapped(host_id=2**32 - 65536)), "exceed"),
        (NamespaceOptions(userns=mapped(host_id=2**32 - 1, length=1)), "exceed"),
        (dataclasses.replace(MAPPED, pid=NamespaceMode.NODE), "pid namespace"),
        (dataclasses.replace(MAPPED, ipc=NamespaceMode.NODE), "ipc namespace"),
    ],
)
def test_what_cannot_be_is_refused(options: NamespaceOptions, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"pod: .*{reason}"):
        validate_pod("pod", options)


def test_a_container_has_its_pods_user_namespace_or_says_nothing() -> None:
    for asked, pod in ((NamespaceOptions(), MAPPED), (MAPPED, MAPPED), (NODE, NODE)):
        validate_container("c", asked, pod)
    validate_container("c", NODE, NamespaceOptions())
    with pytest.raises(InvalidRequestError, match="its pod has none"):
        validate_container("c", MAPPED, NODE)
    other = NamespaceOptions(userns=mapped(host_id=131072))
    for asked in (NODE, other):
        with pytest.raises(InvalidRequestError, match="differs from the pod's"):
            validate_container("c", asked, MAPPED)
    with pytest.raises(InvalidRequestError, match="pid namespace"):
        validate_container("c", NamespaceOptions(pid=NamespaceMode.NODE), MAPPED)


def test_mounts_are_mapped_as_their_pod_or_not_at_all() -> None:
    plain = Mount(container_path="/v", host_path="/v")
    wanted = dataclasses.replace(plain, uid_mappings=(ONE,), gid_mappings=(ONE,))
    validate_mount("c", plain, MAPPED)
    validate_mount("c", wanted, MAPPED)
    for mount, pod, reason in (
        (wanted, NODE, "need a pod with a user namespace"),
        (dataclasses.replace(wanted, gid_mappings=()), MAPPED, "differ from those of the pod"),
        (wanted, NamespaceOptions(userns=mapped(length=7)), "differ from those of the pod"),
        (
            dataclasses.replace(wanted, propagation=MountPropagation.BIDIRECTIONAL),
            MAPPED,
            "do not propagate",
        ),
    ):
        with pytest.raises(InvalidRequestError, match=reason):
            validate_mount("c", mount, pod)


def test_users_are_among_the_mapped_ids() -> None:
    check_user(ContainerUser(uid=2**31 - 1, gid=2**31 - 1), None)
    check_user(ContainerUser(uid=65535, gid=65535, groups=(65535,)), USERNS)
    for user in (
        ContainerUser(uid=65536, gid=0),
        ContainerUser(uid=0, gid=65536),
        ContainerUser(uid=0, gid=0, groups=(0, 65536)),
    ):
        with pytest.raises(InvalidRequestError, match="65536 is outside"):
            check_user(user, USERNS)


def test_mappings_are_said_in_the_words_of_the_oci() -> None:
    assert oci_mappings((ONE,)) == [{"containerID": 0, "hostID": 65536, "size": 65536}]
