"""seccomp profiles as the OCI specification wants them: RuntimeDefault, Localhost, none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from criagent.errors import InvalidRequestError
from criagent.model import ContainerSecurity, ProfileType
from criagent.runtime import seccomp_default as default
from criagent.runtime.spec_inputs import OciObject

_FILE_LIMIT = 1 << 20
_ALLOW, _ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
_EPERM, _ENOSYS = 1, 38
_OCI_KEYS = {
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "flags",
    "listenerPath",
    "listenerMetadata",
    "syscalls",
}


def seccomp_profile(
    security: ContainerSecurity, *, machine: str, capabilities: Iterable[str]
) -> OciObject | None:
    """`linux.seccomp`, or None for an unconfined container. Reads a Localhost profile's file.

    No profile in the request means unconfined, as with containerd. Raises InvalidRequestError.
    """
    profile = security.seccomp
    if security.privileged or profile is None or profile.type is ProfileType.UNCONFINED:
        return None
    if profile.type is ProfileType.RUNTIME_DEFAULT:
        return default_profile(machine, frozenset(capabilities))
    return _localhost(profile.localhost_ref, machine, frozenset(capabilities))


def default_profile(machine: str, capabilities: frozenset[str]) -> OciObject:
    """RuntimeDefault for a container that holds `capabilities`."""
    opened = {
        name
        for capability, names in default.BY_CAPABILITY.items()
        if capability in capabilities
        for name in names
    }
    rules: list[OciObject] = [
        {"names": sorted({*default.ALWAYS, *opened}), "action": _ALLOW},
        *(_socket_rules()),
        *(
            {"names": ["personality"], "action": _ALLOW, "args": [_equal(0, value)]}
            for value in default.PERSONALITIES
        ),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        index = 1 if machine == "s390x" else 0  # the flags come second there
        rules.append({"names": ["clone"], "action": _ALLOW, "args": [_no_namespaces(index)]})
        # Its flags are behind a pointer; with ENOSYS the C library falls back to clone.
        rules.append({"names": ["clone3"], "action": _ERRNO, "errnoRet": _ENOSYS})
    return {
        "defaultAction": _ERRNO,
        "defaultErrnoRet": _EPERM,
        "architectures": default.ARCHITECTURES.get(machine, []),
        "syscalls": rules,
    }


def _socket_rules() -> list[OciObject]:
    """socket(2) for every family but the refused ones; socketcall(2) cannot be looked into."""
    low, high = sorted(default.REFUSED_FAMILIES)
    between = [
        {"names": ["socket"], "action": _ALLOW, "args": [_equal(0, family)]}
        for family in range(low + 1, high)
    ]
    return [
        {"names": ["socket"], "action": _ALLOW, "args": [_compare(0, low, "SCMP_CMP_LT")]},
        *between,
        {"names": ["socket"], "action": _ALLOW, "args": [_compare(0, high, "SCMP_CMP_GT")]},
    ]


def _localhost(path: str, machine: str, capabilities: frozenset[str]) -> OciObject:
    path = path.removeprefix("localhost/") if not path.startswith("/") else path
    if not path.startswith("/"):
        raise InvalidRequestError(f"seccomp profile {path[:200]!r} is not an absolute path")
    try:
        with Path(path).open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except OSError as exc:
        raise InvalidRequestError(
            f"seccomp profile {path} cannot be read: {exc.strerror}; install it on the node"
        ) from None
    if len(data) > _FILE_LIMIT:
        raise InvalidRequestError(f"seccomp profile {path} is larger than {_FILE_LIMIT} bytes")
    try:
        document = msgspec.json.decode(data, type=dict[str, Any])
        return _oci_form(document, machine, capabilities)
    except (msgspec.MsgspecError, TypeError, KeyError, AttributeError) as exc:
        raise InvalidRequestError(f"seccomp profile {path} is malformed: {exc}") from None


def _oci_form(document: dict[str, Any], machine: str, capabilities: frozenset[str]) -> OciObject:
    """A profile in Docker's form (archMap, includes, excludes) or the OCI one, as the OCI one."""
    profile: OciObject = {k: v for k, v in document.items() if k in _OCI_KEYS and v is not None}
    own = default.ARCHITECTURES.get(machine, [])
    for entry in document.get("archMap") or ():
        if own and entry["architecture"] == own[0]:
            profile["architectures"] = [own[0], *(entry.get("subArchitectures") or ())]
    rules = []
    for rule in document.get("syscalls") or ():
        if _applies(rule, own, capabilities):
            kept = {k: rule[k] for k in ("names", "action", "errnoRet", "args") if rule.get(k)}
            if "name" in rule:
                kept["names"] = [rule["name"]]
            rules.append(kept)
    profile["syscalls"] = rules
    if "defaultAction" not in profile:
        raise KeyError("defaultAction")
    return profile


def _applies(rule: dict[str, Any], own: list[str], capabilities: frozenset[str]) -> bool:
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    arches = {name.removeprefix("SCMP_ARCH_").lower() for name in own} | {
        {"x86_64": "amd64", "aarch64": "arm64"}.get(name.removeprefix("SCMP_ARCH_").lower(), "")
        for name in own
    }
    if (wanted := includes.get("arches")) and not arches & set(wanted):
        return False
    if (wanted := includes.get("caps")) and not set(wanted) <= capabilities:
        return False
    if arches & set(excludes.get("arches") or ()):
        return False
    return not capabilities & set(excludes.get("caps") or ())


def _equal(index: int, value: int) -> OciObject:
    return _compare(index, value, "SCMP_CMP_EQ")


def _compare(index: int, value: int, operator: str) -> OciObject:
    return {"index": index, "value": value, "op": operator}


def _no_namespaces(index: int) -> OciObject:
    return {
        "index": index,
        "value": default.NAMESPACE_FLAGS,
        "valueTwo": 0,
        "op": "SCMP_CMP_MASKED_EQ",
    }
