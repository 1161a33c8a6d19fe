# SPDX-License-Identifier: Apache-2.0
"""The user of a container: ids bounded, names looked up in the image alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.model.common import GroupsPolicy
from criagent.model.container import (
    ContainerMetadata,
    ContainerSecurity,
    ContainerSpec,
    ContainerUser,
)
from criagent.model.image import ImageConfig
from criagent.runtime.spec.users import MAX_ID, resolve_user

PASSWD = """root:x:0:0:root:/root:/bin/sh
# nobody2:x:5:5
broken line
app:x:1000:2000:App:/:/bin/sh
4294967296:x:0:0::/:/bin/sh
wraps:x:4294967296:0::/:/bin/sh
negative:x:-1:0::/:/bin/sh
bad:x:7:99999999999::/:/bin/sh
"""
GROUP = """root:x:0:
staff:x:50:app,other
wheel:x:60:app
huge:x:4294967296:
nobodys:x:70:application
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


def resolve(rootfs: Path, image_user: str = "", **security: object) -> ContainerUser:
    spec = ContainerSpec(
        metadata=ContainerMetadata(name="c"),
        image="i",
        security=ContainerSecurity(**security),  # type: ignore[arg-type]
    )
    return resolve_user(rootfs, spec, ImageConfig(user=image_user))


@pytest.mark.parametrize(
    ("image", "uid", "gid", "groups"),
    [
        ("", 0, 0, (0,)),
        ("app", 1000, 2000, (50, 60, 2000)),
        ("1000", 1000, 2000, (50, 60, 2000)),
        ("1000:1000", 1000, 1000, (50, 60, 1000)),
        ("app:staff", 1000, 50, (50, 60)),
        ("12345", 12345, 0, (0,)),
        ("12345:7", 12345, 7, (7,)),
        (":7", 0, 7, (7,)),
        (str(MAX_ID), MAX_ID, 0, (0,)),
    ],
)
def test_the_images_user_is_resolved_in_the_image(
    rootfs: Path, image: str, uid: int, gid: int, groups: tuple[int, ...]
) -> None:
    assert resolve(rootfs, image) == ContainerUser(uid=uid, gid=gid, groups=groups)


@pytest.mark.parametrize(
    "image",
    [
        "2147483648",  # CVE-2024-40635
        "4294967296",  # CVE-2026-46680: also a name in the image's passwd
        "4294967295:0",
        "-1",
        "+0",
        "1000:2147483648",
        "1000:-1",
        "wraps",
        "negative",
        "bad",
        "7",  # its passwd line has a group out of range
        "app:huge",
        "nobody-here",
        "app:no-group",
        "0x0",
        "\u0660",  # a digit to Python, not to us
        "9" * 5000,
        "\0",
    ],
)
def test_ids_that_could_wrap_and_unknown_names_are_refused(rootfs: Path, image: str) -> None:
    with pytest.raises(InvalidRequestError):
        resolve(rootfs, image)


@pytest.mark.parametrize("field", ["run_as_user", "run_as_group"])
@pytest.mark.parametrize("number", [-1, 2**31, 2**32, 2**63 - 1])
def test_requested_ids_are_bounded(rootfs: Path, field: str, number: int) -> None:
    ids: dict[str, Any] = {"run_as_user": 0, "run_as_group": 0, field: number}
    with pytest.raises(InvalidRequestError, match=str(number)):
        resolve(rootfs, **ids)
    with pytest.raises(InvalidRequestError, match=str(number)):
        resolve(rootfs, supplemental_groups=(number,))


def test_the_request_wins_over_the_image(rootfs: Path) -> None:
    assert resolve(rootfs, "app", run_as_user=5) == ContainerUser(uid=5, gid=0, groups=(0,))
    user = resolve(rootfs, "0:0", run_as_username="app", run_as_group=3)
    assert (user.uid, user.gid) == (1000, 3)


@pytest.mark.parametrize("policy", list(GroupsPolicy))
def test_the_primary_group_is_always_among_the_groups(rootfs: Path, policy: GroupsPolicy) -> None:
    # CVE-2022-2995, CVE-2023-25173
    user = resolve(
        rootfs,
        run_as_user=1000,
        run_as_group=1000,
        supplemental_groups=(1234,),
        supplemental_groups_policy=policy,
    )
    image_groups = (50, 60) if policy is GroupsPolicy.MERGE else ()
    assert user.groups == tuple(sorted((1000, 1234, *image_groups)))


def test_a_group_without_a_user_is_refused(rootfs: Path) -> None:
    with pytest.raises(InvalidRequestError, match="run_as_group"):
        resolve(rootfs, run_as_group=5)


def test_an_image_without_accounts_runs_by_number_only(tmp_path: Path) -> None:
    assert resolve(tmp_path, "1000:1000") == ContainerUser(uid=1000, gid=1000, groups=(1000,))
    with pytest.raises(InvalidRequestError, match="passwd"):
        resolve(tmp_path, "app")


def test_links_in_the_image_stay_in_the_image(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("app:x:666:666:::\n")
    for target in (str(tmp_path / "secret"), "../../secret", "../../../../../etc/shadow"):
        (rootfs / "etc/passwd").unlink()
        (rootfs / "etc/passwd").symlink_to(target)
        with pytest.raises(InvalidRequestError, match="passwd"):
            resolve(rootfs, "app")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/etc/real")
    (rootfs / "etc/real").write_text(PASSWD)
    assert resolve(rootfs, "app").uid == 1000


@pytest.mark.parametrize("kind", ["fifo", "directory", "sparse", "device", "loop"])
def test_a_passwd_that_is_no_small_file_is_refused_at_once(rootfs: Path, kind: str) -> None:
    path = rootfs / "etc/passwd"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 4 << 30)  # CVE-2026-47262
    elif kind == "device":
        path.symlink_to("/dev/zero")  # resolved in the image, where there is none
    else:
        path.symlink_to("passwd")
    with pytest.raises(InvalidRequestError, match="passwd"):
        resolve(rootfs, "app")


@pytest.mark.parametrize(
    "user", ["u" * 5_000_000, "9" * 5_000_000, "0:" + "g" * 5_000_000, "long", "0:long"]
)
def test_what_an_image_says_is_cut_in_errors(tmp_path: Path, user: str) -> None:
    name = "n" * 1_000_000
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(f"{name}:x:-5:0::/:\nlong:x:{'8' * 1_000_000}:0::/:\n")
    (tmp_path / "etc/group").write_text(f"{name}:x:-5:long\nlong:x:{'8' * 1_000_000}:\n")
    spec = ContainerSpec(metadata=ContainerMetadata(name="c"), image="i")
    with pytest.raises(InvalidRequestError) as caught:
        resolve_user(tmp_path, spec, ImageConfig(user=user))
    assert len(str(caught.value)) < 300
