# SPDX-License-Identifier: Apache-2.0
"""Devices and node facts: nothing of the host is open but what was asked for."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path
from typing import Any

import pytest

from criagent.base.capabilities import NAMES
from criagent.base.errors import InvalidRequestError
from criagent.model.container import ContainerMetadata, ContainerSecurity, ContainerSpec, Device
from criagent.runtime.node.facts import read_node_facts
from criagent.runtime.spec.devices import device_nodes, device_rules, resolve_devices
from criagent.runtime.spec.inputs import ResolvedDevice

DISK = ResolvedDevice(
    path="/dev/disk", kind="b", major=8, minor=0, mode=0o660, uid=0, gid=6, access="r"
)


def resolve(
    *devices: Device, host_devices: bool = False, owned: bool = False, **security: Any
) -> tuple[ResolvedDevice, ...]:
    return resolve_devices(
        ContainerSpec(
            metadata=ContainerMetadata(name="c"),
            image="i",
            devices=devices,
            security=ContainerSecurity(**security),
        ),
        host_devices=host_devices,
        owned=owned,
    )


def device(host: Path | str, target: str = "", permissions: str = "rwm") -> Device:
    return Device(host_path=str(host), container_path=target, permissions=permissions)


def allowed(rules: list[dict[str, Any]], kind: str, major: int, minor: int, access: str) -> bool:
    """Whether the last rule that speaks of it allows each access (Linux, device controller)."""
    for letter in access:
        verdict = False
        for rule in rules:
            if (
                rule.get("type", "a") in {"a", kind}
                and rule.get("major", major) == major
                and rule.get("minor", minor) == minor
                and letter in rule["access"]
            ):
                verdict = rule["allow"]
        if not verdict:
            return False
    return True


@pytest.mark.parametrize(
    ("kind", "major", "minor", "open_"),
    [
        ("c", 1, 3, True),  # null
        ("c", 1, 5, True),  # zero
        ("c", 1, 9, True),  # urandom
        ("c", 5, 0, True),  # tty
        ("c", 5, 2, True),  # ptmx
        ("c", 136, 77, True),  # a pty
        ("c", 1, 1, False),  # mem
        ("c", 1, 11, False),  # kmsg
        ("c", 4, 0, False),  # tty0
        ("c", 10, 200, False),  # net/tun
        ("c", 10, 232, False),  # kvm
        ("c", 10, 229, False),  # fuse
        ("b", 8, 0, False),  # sda
        ("b", 1, 3, False),  # a block device with null's numbers
    ],
)
def test_an_unprivileged_container_opens_harmless_devices_only(
    kind: str, major: int, minor: int, open_: bool
) -> None:
    rules = device_rules((), all_devices=False)
    assert allowed(rules, kind, major, minor, "rw") is open_


def test_the_first_rule_denies_everything() -> None:
    assert device_rules((DISK,), all_devices=False)[0] == {"allow": False, "access": "rwm"}


def test_a_requested_device_opens_as_far_as_asked() -> None:
    rules = device_rules((DISK,), all_devices=False)
    assert allowed(rules, "b", 8, 0, "r")
    assert not allowed(rules, "b", 8, 0, "w")
    assert not allowed(rules, "b", 8, 1, "r")


def test_a_privileged_container_opens_everything() -> None:
    assert allowed(device_rules((), all_devices=True), "b", 8, 0, "rwm")


def test_nodes_look_like_the_hosts() -> None:
    assert device_nodes((DISK,)) == [
        {
            "path": "/dev/disk",
            "type": "b",
            "major": 8,
            "minor": 0,
            "fileMode": 0o660,
            "uid": 0,
            "gid": 6,
        }
    ]


@pytest.mark.parametrize(
    ("permissions", "access"), [("", "rwm"), ("r", "r"), ("mr", "mr"), ("rwm", "rwm")]
)
def test_a_requested_node_is_found_on_the_host(permissions: str, access: str) -> None:
    (found,) = resolve(device("/dev/null", "/dev/nothing", permissions))
    assert (found.path, found.kind, found.major, found.minor) == ("/dev/nothing", "c", 1, 3)
    assert found.access == access
    assert found.mode == stat.S_IMODE(os.stat("/dev/null").st_mode)


def test_a_node_keeps_its_place_without_a_container_path() -> None:
    assert resolve(device("/dev/zero"))[0].path == "/dev/zero"


def test_a_link_to_a_device_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    (found,) = resolve(device(tmp_path / "link", "/dev/x"))
    assert (found.path, found.minor) == ("/dev/x", 3)


def test_a_directory_gives_the_nodes_in_it_but_no_links(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "sub").mkdir()
    assert resolve(device(tmp_path, "/dev/x")) == ()
    found = {item.path for item in resolve(device("/dev", "/d"))}
    assert {"/d/null", "/d/zero"} <= found
    assert not any(path.startswith(("/d/pts", "/d/shm", "/d/mqueue")) for path in found)
    assert "/d/console" not in found


@pytest.mark.parametrize(
    ("host", "target", "permissions"),
    [
        ("/dev/null", "/dev/x", "rwx"),
        ("/dev/null", "/dev/x", "rr"),
        ("/dev/null", "/dev/x", "RW"),
        ("/dev/null", "dev/x", "rwm"),
        ("/dev/null", "/dev/../etc/x", "rwm"),
        ("/dev/null", "/dev/a\0b", "rwm"),
        ("/dev/../dev/null", "/dev/x", "rwm"),
        ("dev/null", "/dev/x", "rwm"),
        ("", "/dev/x", "rwm"),
        ("/dev/no-such-device", "/dev/x", "rwm"),
        ("/etc/passwd", "/dev/x", "rwm"),
    ],
)
def test_bad_devices_are_refused(host: str, target: str, permissions: str) -> None:
    with pytest.raises(InvalidRequestError, match="device"):
        resolve(device(host, target, permissions))


def test_a_loop_and_a_fifo_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    for name in ("loop", "fifo"):
        with pytest.raises(InvalidRequestError, match="device"):
            resolve(device(tmp_path / name))


def test_a_privileged_container_has_the_nodes_devices_once() -> None:
    found = resolve(device("/dev/null", "/dev/null", "r"), host_devices=True)
    paths = [item.path for item in found]
    assert len(paths) == len(set(paths))
    assert "/dev/zero" in paths
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/", "/dev/mqueue/")) for path in paths)
    assert next(item for item in found if item.path == "/dev/null").access == "r"
    assert {item.kind for item in found} <= {"b", "c"}


@pytest.mark.parametrize(
    ("owned", "security", "uid", "gid"),
    [
        (True, {"run_as_user": 1000, "run_as_group": 2000}, 1000, 2000),
        (True, {"run_as_user": 1000}, 1000, 0),
        (True, {"run_as_user": 0, "run_as_group": 0}, 0, 0),
        (True, {}, 0, 0),
        (False, {"run_as_user": 1000, "run_as_group": 2000}, 0, 0),
    ],
)
def test_requested_nodes_can_belong_to_the_security_contexts_user(
    owned: bool, security: dict[str, Any], uid: int, gid: int
) -> None:
    (found,) = resolve(device("/dev/full"), owned=owned, **security)
    assert (found.uid, found.gid) == (uid, gid)


def test_the_nodes_own_devices_keep_their_owners() -> None:
    found = resolve(device("/dev/null"), host_devices=True, owned=True, run_as_user=1000)
    assert {item.uid for item in found if item.path in {"/dev/null", "/dev/zero"}} == {1000, 0}


def test_facts_about_this_node_stay_within_what_it_can_give() -> None:
    facts = read_node_facts(nofile=(1024, 10**9), missing_controllers="ignore")
    soft, hard = facts.nofile
    assert soft <= hard <= int(Path("/proc/sys/fs/nr_open").read_text())
    if "CAP_SYS_RESOURCE" not in facts.capabilities:
        assert hard <= resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert facts.oom_score_floor == int(Path("/proc/self/oom_score_adj").read_text())
    else:
        assert facts.oom_score_floor == -1000
    assert facts.capabilities <= set(NAMES)
    assert facts.missing_controllers == "ignore"
    assert all(path.endswith("/thermal_throttle") for path in facts.thermal_paths)
    assert not facts.swap or "memory" in facts.controllers


def test_a_small_wish_for_open_files_is_kept() -> None:
    facts = read_node_facts(nofile=(64, 128), missing_controllers="error")
    assert facts.nofile == (64, 128)
