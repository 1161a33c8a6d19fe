# SPDX-License-Identifier: Apache-2.0
"""The user of a container: numbers, or names looked up inside the image with limits.

Ids must be 0..2^31-1, wherever they come from: larger ones wrap round to root in some lower layer
(CVE-2024-40635, CVE-2026-46680). The primary group is always among the groups, or a process could
shed a group-deny rule (CVE-2022-2995, CVE-2023-25173).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from criagent.base.errors import InvalidRequestError
from criagent.kernel.paths import read_in_root
from criagent.model.common import GroupsPolicy
from criagent.model.container import ContainerSecurity, ContainerSpec, ContainerUser
from criagent.model.image import ImageConfig

MAX_ID = 2**31 - 1
_FILE_LIMIT = 4 * 1024 * 1024  # passwd with 40,000 users; an image with more is refused
_NUMBER = re.compile(r"[0-9]+")
_NUMBER_LIKE = re.compile(r"[+-]?[0-9]+")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Account:
    name: str
    uid: int
    gid: int


def resolve_user(rootfs: Path, spec: ContainerSpec, image: ImageConfig) -> ContainerUser:
    """The effective ids of the main process. Reads the image's files: call it in a thread.

    Raises InvalidRequestError for ids out of range, unknown names, and files of the image that are
    too large or not regular.
    """
    security = spec.security
    user, group = _wanted(security, image)
    account = _account(rootfs, user)
    if security.run_as_group is not None:
        gid = check_id(security.run_as_group, "run_as_group")
    elif group:
        gid = _group_id(rootfs, group)
    else:
        gid = account.gid
    extra = [check_id(item, "supplemental group") for item in security.supplemental_groups]
    groups = {gid, *extra}
    if security.supplemental_groups_policy is GroupsPolicy.MERGE and account.name:
        groups.update(_memberships(rootfs, account.name))
    return ContainerUser(uid=account.uid, gid=gid, groups=tuple(sorted(groups)))


def check_id(number: int, what: str) -> int:
    """`number`, which must be a uid or gid. Raises InvalidRequestError."""
    if not 0 <= number <= MAX_ID:
        raise InvalidRequestError(f"{what} {number} is not between 0 and {MAX_ID}")
    return number


def _wanted(security: ContainerSecurity, image: ImageConfig) -> tuple[str, str]:
    """User and group as text, from the request or else from the image."""
    if security.run_as_username:
        return security.run_as_username, ""
    if security.run_as_user is not None:
        return str(check_id(security.run_as_user, "run_as_user")), ""
    if security.run_as_group is not None:
        raise InvalidRequestError(
            f"run_as_group {security.run_as_group} requires run_as_user or run_as_username"
        )
    user, _, group = image.user.partition(":")
    return user or "0", group


def _account(rootfs: Path, user: str) -> _Account:
    if not _NUMBER_LIKE.fullmatch(user):
        return _account_by_name(rootfs, user)
    uid = _number(user, "user")
    for fields in _records(rootfs, "etc/passwd", 4):
        if _NUMBER.fullmatch(fields[2]) and int(fields[2][:20]) == uid:
            return _Account(
                name=fields[0], uid=uid, gid=_number(fields[3], f"gid of {_cut(fields[0])}")
            )
    return _Account(name="", uid=uid, gid=0)


def _account_by_name(rootfs: Path, user: str) -> _Account:
    for fields in _records(rootfs, "etc/passwd", 4):
        if fields[0] == user:
            uid = _number(fields[2], f"uid of user {_cut(user)} in the image")
            return _Account(name=user, uid=uid, gid=_number(fields[3], f"gid of user {_cut(user)}"))
    raise InvalidRequestError(f"user {_cut(user)} is not in the image's /etc/passwd")


def _group_id(rootfs: Path, group: str) -> int:
    if _NUMBER_LIKE.fullmatch(group):
        return _number(group, "group")
    for fields in _records(rootfs, "etc/group", 3):
        if fields[0] == group:
            return _number(fields[2], f"gid of group {_cut(group)} in the image")
    raise InvalidRequestError(f"group {_cut(group)} is not in the image's /etc/group")


def _memberships(rootfs: Path, name: str) -> Iterable[int]:
    for fields in _records(rootfs, "etc/group", 4):
        if name in fields[3].split(","):
            yield _number(fields[2], f"gid of group {_cut(fields[0])} in the image")


def _number(text: str, what: str) -> int:
    if not _NUMBER.fullmatch(text) or len(text) > 20:
        raise InvalidRequestError(f"{what}: {text[:40]!r} is not a number between 0 and {MAX_ID}")
    return check_id(int(text), what)


def _cut(text: str) -> str:
    """Text that the image controls, short enough for an error."""
    return repr(text[:80])


def _records(rootfs: Path, path: str, least: int) -> Iterator[list[str]]:
    """Colon-separated records with at least `least` fields; others are skipped, as libc does."""
    try:
        data = read_in_root(rootfs, path, _FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise InvalidRequestError(
            f"the image's /{path} cannot be read: {error.strerror}"
        ) from error
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= least and fields[0] and not fields[0].startswith("#"):
            yield fields
