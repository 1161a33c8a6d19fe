# SPDX-License-Identifier: Apache-2.0
"""seccomp profiles in the form of the OCI specification: RuntimeDefault, Localhost, OCI, none."""

from __future__ import annotations

import errno
import functools
import os
import platform
import re
import stat
from collections.abc import Callable, Iterable
from typing import Annotated

import msgspec

from criagent.base.errors import InvalidRequestError
from criagent.model.common import ProfileType
from criagent.model.container import ContainerSecurity
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.security import seccomp_default as default
from criagent.runtime.spec.security.seccomp_merge import Merged, intersection
from criagent.runtime.spec.security.seccomp_pulled import pulled_profile

_Count = Annotated[int, msgspec.Meta(ge=0)]
_FILE_LIMIT = 1 << 20
_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_EPERM, _ENOSYS = 1, 38
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}  # names of machines in Docker's form
_NUMBERS = re.compile(r"[0-9]{1,6}")


class _Argument(msgspec.Struct, omit_defaults=True, kw_only=True):
    index: _Count
    value: _Count
    op: str
    valueTwo: _Count = 0  # noqa: N815 - names of the file's format, here and below


class _Condition(msgspec.Struct, kw_only=True):
    arches: tuple[str, ...] | None = None
    caps: tuple[str, ...] | None = None
    minKernel: str | None = None  # noqa: N815


class _Rule(msgspec.Struct, kw_only=True):
    action: str
    names: tuple[str, ...] = ()
    name: str = ""
    errnoRet: _Count | None = None  # noqa: N815
    args: tuple[_Argument, ...] | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _ArchMap(msgspec.Struct, kw_only=True):
    architecture: str
    subArchitectures: tuple[str, ...] | None = None  # noqa: N815


class _Profile(msgspec.Struct, kw_only=True):
    """A profile's file; other keys, such as comments, are skipped."""

    defaultAction: str  # noqa: N815
    defaultErrnoRet: _Count | None = None  # noqa: N815
    architectures: tuple[str, ...] | None = None
    archMap: tuple[_ArchMap, ...] | None = None  # noqa: N815
    flags: tuple[str, ...] | None = None
    listenerPath: str | None = None  # noqa: N815
    listenerMetadata: str | None = None  # noqa: N815
    syscalls: tuple[_Rule, ...] | None = None


def seccomp_profile(
    security: ContainerSecurity,
    *,
    machine: str,
    capabilities: Iterable[str],
    pulled: Callable[[str], bytes],
) -> Merged | None:
    """`linux.seccomp`, or None for an unconfined container. Reads the profile's files.

    `pulled` gives the document of a profile from a registry. No profile in the request means
    unconfined, as with containerd. Raises InvalidRequestError and what `pulled` raises.
    """
    profile, held = security.seccomp, frozenset(capabilities)
    if security.privileged or profile is None or profile.type is ProfileType.UNCONFINED:
        return None
    if profile.type is ProfileType.LOCALHOST:
        return Merged(_localhost(profile.localhost_ref, machine, held), ())
    if profile.type is ProfileType.RUNTIME_DEFAULT:
        return Merged(default_profile(machine, held), ())
    if profile.base_ref:
        base = _localhost(profile.base_ref, machine, held)
    else:
        base = default_profile(machine, held)
    return intersection(base, pulled_profile(pulled(profile.oci_ref)), machine)


def default_profile(machine: str, capabilities: frozenset[str]) -> OciObject:
    """RuntimeDefault for a container that holds `capabilities`."""
    rules: list[OciObject] = [
        {"names": list(_allowed(machine, capabilities)), "action": _ALLOW},
        *(_socket_rules()),
        *(
            {"names": ["personality"], "action": _ALLOW, "args": [_equal(0, value)]}
            for value in default.PERSONALITIES
        ),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        index = 1 if machine == "s390x" else 0  # the flags come second there
        no_namespaces = _masked(index, default.NAMESPACE_FLAGS, 0)
        rules.append({"names": ["clone"], "action": _ALLOW, "args": [no_namespaces]})
        # Its flags are behind a pointer; with ENOSYS the C library falls back to clone.
        rules.append({"names": ["clone3"], "action": _ERRNO, "errnoRet": _ENOSYS})
    return {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": _EPERM,
        "architectures": default.ARCHITECTURES.get(machine, []),
        "syscalls": rules,
    }


@functools.lru_cache(16)  # nearly all containers of a node have the same capabilities
def _allowed(machine: str, capabilities: frozenset[str]) -> tuple[str, ...]:
    """Calls that are allowed whatever their arguments, in order."""
    opened = {
        name
        for capability, names in default.BY_CAPABILITY.items()
        if capability in capabilities
        for name in names
    }
    always = (*default.ALWAYS, *default.BY_MACHINE.get(machine, ()))
    return tuple(sorted({*always, *opened}))


def _socket_rules() -> list[OciObject]:
    """socket(2) for every family but the refused ones; arguments of socketcall(2) are not visible.

    The kernel takes the family as an int, so only its low 32 bits may be compared: by "greater than
    40", 2**32 + 38 would pass and then be AF_ALG.
    """
    rules = []
    start = 0
    for end in (*sorted(default.REFUSED_FAMILIES), default.FAMILIES):
        while start < end:
            size = start & -start or default.FAMILIES_BLOCK  # the largest aligned block
            while start + size > end:
                size //= 2
            mask = 0xFFFFFFFF & ~(size - 1)
            argument = _masked(0, mask, start)
            rules.append({"names": ["socket"], "action": _ALLOW, "args": [argument]})
            start += size
        start = end + 1
    return rules


def _localhost(path: str, machine: str, capabilities: frozenset[str]) -> OciObject:
    path = path if path.startswith("/") else path.removeprefix("localhost/")
    if not path.startswith("/") or "\0" in path:
        raise InvalidRequestError(f"seccomp profile {path[:200]!r} is not an absolute path")
    try:
        data = _read(path)
    except OSError as exc:
        raise InvalidRequestError(
            f"seccomp profile {path} cannot be read: {exc.strerror}; install it on the node"
        ) from None
    try:
        profile = msgspec.json.decode(data, type=_Profile)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise InvalidRequestError(f"seccomp profile {path} is malformed: {exc}") from None
    return _oci_form(profile, machine, capabilities)


def _read(path: str) -> bytes:
    """Content of a regular file of at most `_FILE_LIMIT` bytes; a FIFO there blocks nothing."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        data = file.read(_FILE_LIMIT + 1)
    if len(data) > _FILE_LIMIT:
        raise OSError(errno.EFBIG, f"larger than {_FILE_LIMIT} bytes", path)
    return data


def _oci_form(profile: _Profile, machine: str, capabilities: frozenset[str]) -> OciObject:
    """The OCI form of a profile in Docker's form (archMap, includes, excludes) or the OCI form."""
    result: OciObject = {"defaultAction": profile.defaultAction}
    own = default.ARCHITECTURES.get(machine, [])
    architectures = profile.architectures or ()
    for entry in profile.archMap or ():
        if own and entry.architecture == own[0]:
            architectures = (entry.architecture, *(entry.subArchitectures or ()))
    for key, value in (
        ("defaultErrnoRet", profile.defaultErrnoRet),
        ("architectures", list(architectures) or None),
        ("flags", list(profile.flags or ()) or None),
        ("listenerPath", profile.listenerPath or None),
        ("listenerMetadata", profile.listenerMetadata or None),
    ):
        if value is not None:
            result[key] = value
    result["syscalls"] = [
        _oci_rule(rule) for rule in profile.syscalls or () if _applies(rule, machine, capabilities)
    ]
    return result


def _oci_rule(rule: _Rule) -> OciObject:
    result: OciObject = {"names": [*rule.names, rule.name] if rule.name else list(rule.names)}
    result["action"] = rule.action
    if rule.errnoRet is not None:
        result["errnoRet"] = rule.errnoRet
    if rule.args:
        result["args"] = [msgspec.to_builtins(argument) for argument in rule.args]
    return result


def _applies(rule: _Rule, machine: str, capabilities: frozenset[str]) -> bool:
    """Whether the conditions of Docker's form are met: all of `includes`, none of `excludes`."""
    native = {machine, _GO_NAMES.get(machine, machine)}
    includes, excludes = rule.includes or _Condition(), rule.excludes or _Condition()
    if includes.arches and native.isdisjoint(includes.arches):
        return False
    if includes.caps and not capabilities.issuperset(includes.caps):
        return False
    if includes.minKernel and not _kernel_is_at_least(includes.minKernel):
        return False
    if excludes.minKernel and _kernel_is_at_least(excludes.minKernel):
        return False
    return native.isdisjoint(excludes.arches or ()) and capabilities.isdisjoint(excludes.caps or ())


def _kernel_is_at_least(wanted: str) -> bool:
    return _version(platform.release()) >= _version(wanted)


def _version(text: str) -> tuple[int, int]:
    major, minor, *_ = [*_NUMBERS.findall(text), "0", "0"]
    return int(major), int(minor)


def _equal(index: int, value: int) -> OciObject:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> OciObject:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
