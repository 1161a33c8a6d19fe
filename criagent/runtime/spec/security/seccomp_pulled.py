# SPDX-License-Identifier: Apache-2.0
"""seccomp profiles from registries: the OCI form, read strictly (KEP-6061).

What a profile may not say: a listener and SCMP_ACT_NOTIFY, which are the node's; unknown keys,
actions, operators, architectures and flags; rules of one call that contradict each other, which
libseccomp refuses or judges in an order of its own. A name that is no call of this kernel or
libseccomp is let through, as OCI runtimes do: profiles are older and newer than nodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from criagent.base.errors import InvalidRequestError
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.security import seccomp_merge as merge

_Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]  # the kernel's MAX_ERRNO
_Index = Annotated[int, msgspec.Meta(ge=0, le=5)]
_MAX_RULES = 16384  # of the whole profile, one for each name of an entry
_MAX_RULES_OF_CALL = 256
_MAX_NAMES = 1024  # of one entry
_VALUES = 1 << 64
_ARCHITECTURE = re.compile(r"SCMP_ARCH_[A-Z0-9_]{1,20}")
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
}
_WITH_ERRNO = {"SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"}


class _Argument(msgspec.Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    index: _Index
    value: int
    op: str
    valueTwo: int = 0  # noqa: N815 - names of the OCI specification, here and below


class _Rule(msgspec.Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    names: tuple[str, ...]
    action: str
    errnoRet: _Errno | None = None  # noqa: N815
    args: tuple[_Argument, ...] | None = None


class _Profile(msgspec.Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    defaultAction: str  # noqa: N815
    defaultErrnoRet: _Errno | None = None  # noqa: N815
    architectures: tuple[str, ...] | None = None
    flags: tuple[str, ...] | None = None
    listenerPath: str = ""  # noqa: N815
    listenerMetadata: str = ""  # noqa: N815
    syscalls: tuple[_Rule, ...] | None = None


def pulled_profile(data: bytes) -> OciObject:
    """The profile whose document is `data`. Raises InvalidRequestError that says what is wrong."""
    try:
        json.loads(data, object_pairs_hook=_once)
        profile = msgspec.json.decode(data, type=_Profile)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise InvalidRequestError(
            f"the document is not a seccomp profile of the OCI specification: {str(exc)[:500]}"
        ) from None
    _check_top(profile)
    _check_rules(profile.syscalls or ())
    made: OciObject = msgspec.to_builtins(profile)
    for name, rules in merge.rules_by_name(made).items():
        if len(rules) > _MAX_RULES_OF_CALL:
            raise InvalidRequestError(f"{name} has {len(rules)} rules; at most 256 are supported")
        if merge.contradict(rules):
            raise InvalidRequestError(
                f"the rules of {name} contradict each other; give the call one action"
            )
    return made


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has one key twice")
    return found


def _check_top(profile: _Profile) -> None:
    if profile.listenerPath or profile.listenerMetadata:
        raise InvalidRequestError("it names a listener, which only the node can; leave it out")
    _check_action("defaultAction", profile.defaultAction, profile.defaultErrnoRet)
    for kind, values, known in (
        ("architecture", profile.architectures or (), _ARCHITECTURE.fullmatch),
        ("flag", profile.flags or (), _FLAGS.__contains__),
    ):
        for value in values:
            if not known(value):
                raise InvalidRequestError(f"the {kind} {_shown(value)} is unknown")
        if len(set(values)) != len(values):
            raise InvalidRequestError(f"it lists one {kind} twice")


def _check_rules(rules: Iterable[_Rule]) -> None:
    left = _MAX_RULES
    for rule in rules:
        if not 0 < len(rule.names) <= _MAX_NAMES:
            raise InvalidRequestError(
                f"an entry has {len(rule.names)} names; it needs 1 to {_MAX_NAMES}"
            )
        for name in rule.names:
            if not _NAME.fullmatch(name):
                raise InvalidRequestError(f"{_shown(name)} is not the name of a system call")
        _check_action(rule.names[0], rule.action, rule.errnoRet)
        for argument in rule.args or ():
            if argument.op not in merge.OPERATORS:
                raise InvalidRequestError(
                    f"{rule.names[0]}: the operator {_shown(argument.op)} is unknown"
                )
            if not (0 <= argument.value < _VALUES and 0 <= argument.valueTwo < _VALUES):
                raise InvalidRequestError(f"{rule.names[0]}: a value does not fit into 64 bits")
        left -= len(rule.names) * max(1, len(rule.args or ()))
    if left < 0:
        raise InvalidRequestError(f"it has too many rules; at most {_MAX_RULES} are supported")


def _check_action(where: str, action: str, errno: int | None) -> None:
    if action == "SCMP_ACT_NOTIFY":
        raise InvalidRequestError(f"{where}: SCMP_ACT_NOTIFY needs a listener of the node")
    if action not in merge.ACTIONS:
        raise InvalidRequestError(f"{where}: the action {_shown(action)} is unknown")
    if errno is not None and action not in _WITH_ERRNO:
        raise InvalidRequestError(f"{where}: an error number does not go with {action}")


def _shown(text: str) -> str:
    return repr(text[:80])
