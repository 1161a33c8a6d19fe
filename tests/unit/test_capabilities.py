# SPDX-License-Identifier: Apache-2.0
"""Capability sets and stop signals: what is asked for, bounded by what the node has."""

from __future__ import annotations

import pytest

from criagent._proto import api_pb2
from criagent.base.capabilities import NAMES
from criagent.base.errors import InvalidRequestError
from criagent.model.container import ContainerSecurity
from criagent.runtime.spec.security.capabilities import DEFAULT, capability_sets
from criagent.runtime.spec.security.masked_paths import (
    MASKED,
    READONLY,
    masked_paths,
    readonly_paths,
)
from criagent.runtime.spec.signals import cri_signal, signal_number, stop_signal

ALL = frozenset(NAMES)
THERMAL = ("/sys/devices/system/cpu/cpu0/thermal_throttle",)


def held(security: ContainerSecurity, available: frozenset[str] = ALL) -> set[str]:
    sets = capability_sets(security, available)
    assert sets["bounding"] == sets["effective"] == sets["permitted"]
    return set(sets["bounding"])


def test_the_kernel_knows_the_names_in_this_order() -> None:
    # linux/capability.h: CAP_CHOWN 0, CAP_SYS_ADMIN 21, CAP_CHECKPOINT_RESTORE 40
    assert (NAMES[0], NAMES[21], NAMES[40]) == (
        "CAP_CHOWN",
        "CAP_SYS_ADMIN",
        "CAP_CHECKPOINT_RESTORE",
    )
    assert len(set(NAMES)) == 41
    assert len(DEFAULT) == 14


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        ((), (), DEFAULT),
        (("NET_ADMIN",), (), DEFAULT | {"CAP_NET_ADMIN"}),
        (("cap_net_admin",), (), DEFAULT | {"CAP_NET_ADMIN"}),
        ((), ("NET_RAW", "CAP_KILL"), DEFAULT - {"CAP_NET_RAW", "CAP_KILL"}),
        ((), ("ALL",), set()),
        (("NET_BIND_SERVICE",), ("ALL",), {"CAP_NET_BIND_SERVICE"}),
        (("ALL",), (), ALL),
        (("all",), ("SYS_ADMIN",), ALL - {"CAP_SYS_ADMIN"}),
        (("ALL",), ("ALL",), set()),
        (("ALL", "CHOWN"), ("ALL",), {"CAP_CHOWN"}),
        (("SYS_ADMIN",), ("SYS_ADMIN",), DEFAULT),
    ],
)
def test_add_and_drop_combine_as_in_containerd(
    add: tuple[str, ...], drop: tuple[str, ...], expected: set[str]
) -> None:
    assert held(ContainerSecurity(add_capabilities=add, drop_capabilities=drop)) == expected


def test_nothing_that_the_node_lacks_is_handed_on() -> None:
    node = ALL - {"CAP_SYS_RESOURCE"}
    assert held(ContainerSecurity(add_capabilities=("SYS_RESOURCE",)), node) == DEFAULT
    assert held(ContainerSecurity(add_capabilities=("ALL",)), node) == node
    assert held(ContainerSecurity(privileged=True), node) == node
    assert held(ContainerSecurity(privileged=True, drop_capabilities=("ALL",)), node) == node


@pytest.mark.parametrize("security", [ContainerSecurity(), ContainerSecurity(privileged=True)])
def test_inheritable_and_ambient_are_empty_unless_asked_for(security: ContainerSecurity) -> None:
    sets = capability_sets(security, ALL)
    assert sets["inheritable"] == sets["ambient"] == []


@pytest.mark.parametrize(
    ("security", "ambient"),
    [
        (ContainerSecurity(add_ambient_capabilities=("NET_RAW",)), ["CAP_NET_RAW"]),
        (
            ContainerSecurity(
                add_capabilities=("KILL",),
                drop_capabilities=("ALL",),
                add_ambient_capabilities=("ALL",),
            ),
            ["CAP_KILL"],
        ),
        (
            ContainerSecurity(privileged=True, add_ambient_capabilities=("SYS_ADMIN",)),
            ["CAP_SYS_ADMIN"],
        ),
    ],
)
def test_ambient_capabilities_are_inheritable_too(
    security: ContainerSecurity, ambient: list[str]
) -> None:
    sets = capability_sets(security, ALL)
    assert sets["ambient"] == sets["inheritable"] == ambient


def test_ambient_capabilities_cannot_bring_back_a_dropped_one() -> None:
    security = ContainerSecurity(
        drop_capabilities=("ALL",), add_ambient_capabilities=("NET_ADMIN",)
    )
    with pytest.raises(InvalidRequestError, match="CAP_NET_ADMIN"):
        capability_sets(security, ALL)


@pytest.mark.parametrize("name", ["FLY", "", "CAP_", "CAP_ALL", "CHOWN\n", "CAP_CAP_CHOWN"])
@pytest.mark.parametrize("field", ["add_capabilities", "drop_capabilities"])
@pytest.mark.parametrize("privileged", [False, True])
def test_unknown_names_are_refused(name: str, field: str, privileged: bool) -> None:
    lists: dict[str, tuple[str, ...]] = {field: (name,)}
    security = ContainerSecurity(
        privileged=privileged,
        add_capabilities=lists.get("add_capabilities", ()),
        drop_capabilities=lists.get("drop_capabilities", ()),
    )
    with pytest.raises(InvalidRequestError, match="unknown capability"):
        capability_sets(security, ALL)


def test_masked_and_readonly_paths_without_a_request_are_the_defaults() -> None:
    assert masked_paths(ContainerSecurity(), THERMAL, userns=False) == [*MASKED, *THERMAL]
    assert readonly_paths(ContainerSecurity(), userns=False) == list(READONLY)
    assert "/sys/devices/virtual/powercap" in MASKED
    assert {"/proc/kcore", "/proc/keys", "/proc/interrupts", "/proc/scsi"} <= set(MASKED)


def test_masked_and_readonly_paths_without_a_request_are_none_in_a_user_namespace() -> None:
    assert masked_paths(ContainerSecurity(), THERMAL, userns=True) == []
    assert readonly_paths(ContainerSecurity(), userns=True) == []


@pytest.mark.parametrize("userns", [False, True])
def test_masked_and_readonly_paths_of_the_request_win(userns: bool) -> None:
    security = ContainerSecurity(masked_paths=("/bin/ls",), readonly_paths=("/tmp",))
    assert masked_paths(security, THERMAL, userns=userns) == ["/bin/ls"]
    assert readonly_paths(security, userns=userns) == ["/tmp"]


def test_an_old_kubelets_default_list_is_completed_and_keeps_its_own() -> None:
    old = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/own")
    paths = masked_paths(ContainerSecurity(masked_paths=old), THERMAL, userns=False)
    assert set(paths) == {*MASKED, *THERMAL, "/proc/own"}
    assert len(paths) == len(set(paths))


def test_privileged_containers_see_and_write_everything() -> None:
    security = ContainerSecurity(
        privileged=True, masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",)
    )
    assert masked_paths(security, THERMAL, userns=False) == []
    assert readonly_paths(security, userns=False) == []


def test_every_signal_of_the_cri_has_its_kernel_name_and_number() -> None:
    for name, number in api_pb2.Signal.items():
        if number == 0:
            continue
        spelled = (
            name.removeprefix("SIGNAL_").replace("MINPLUS", "MIN+").replace("MAXMINUS", "MAX-")
        )
        assert stop_signal(number, "SIGKILL") == spelled
        assert 0 < signal_number(spelled) <= 64


@pytest.mark.parametrize(
    ("image", "name", "number"),
    [
        ("", "SIGTERM", 15),
        ("SIGQUIT", "SIGQUIT", 3),
        ("quit", "SIGQUIT", 3),
        ("15", "SIGTERM", 15),
        (" 9 ", "SIGKILL", 9),
        ("34", "SIGRTMIN", 34),
        ("37", "SIGRTMIN+3", 37),
        ("64", "SIGRTMIN+30", 64),
        ("SIGRTMIN+3", "SIGRTMIN+3", 37),
        ("rtmax-14", "SIGRTMAX-14", 50),
        ("RTMAX", "SIGRTMAX", 64),
        ("SIGIOT", "SIGIOT", 6),
    ],
)
def test_an_images_stop_signal_is_read_as_it_is_written(image: str, name: str, number: int) -> None:
    assert stop_signal(0, image) == name
    assert signal_number(name) == number


@pytest.mark.parametrize(
    "image",
    ["0", "32", "65", "-15", "9" * 5000, "²", "٣", "SIG", "SIGSIGTERM", "SIGRTMIN+31", "RTMAX-31",
     "RTMIN-1", "TERM;KILL", "SIG_IGN", "\0"],
)  # fmt: skip
def test_an_image_with_nonsense_for_a_stop_signal_is_refused(image: str) -> None:
    with pytest.raises(InvalidRequestError, match="signal"):
        stop_signal(0, image)


@pytest.mark.parametrize("number", [-1, 66, 2**31])
def test_numbers_that_the_cri_has_not_are_refused(number: int) -> None:
    with pytest.raises(InvalidRequestError, match=str(number)):
        stop_signal(number, "")


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 23), ("SIGABRT", 1), ("SIGRTMIN+3", 38), ("SIGRTMIN+20", 55), ("SIGRTMAX", 65)],
)
def test_a_signal_has_its_number_of_the_cri(name: str, number: int) -> None:
    assert cri_signal(name) == number
    assert signal_number(stop_signal(number, "")) == signal_number(name)
