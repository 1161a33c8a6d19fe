# SPDX-License-Identifier: Apache-2.0
"""The intersection of seccomp profiles, judged by what filters made of them would answer."""

from __future__ import annotations

import itertools
import json
from random import Random
from typing import Any

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.model.common import ProfileType, SecurityProfile
from criagent.model.container import ContainerSecurity
from criagent.runtime.spec.security.capabilities import DEFAULT
from criagent.runtime.spec.security.seccomp import default_profile, seccomp_profile
from criagent.runtime.spec.security.seccomp_merge import intersection
from criagent.runtime.spec.security.seccomp_pulled import pulled_profile
from tests.support.seccomp_answers import ORDER, random_profile, strictness

ALLOWED, REFUSED = ORDER.index("SCMP_ACT_ALLOW"), ORDER.index("SCMP_ACT_ERRNO")
REF = "registry.example/profile@sha256:" + "1" * 64
AF_UNIX, AF_INET, AF_ALG = 1, 2, 38


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


def rule(*names: str, action: str = "SCMP_ACT_ERRNO", args: Any = ()) -> dict[str, Any]:
    return {"names": list(names), "action": action, "args": list(args)}


def when(index: int, value: int, op: str = "SCMP_CMP_EQ", second: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "op": op, "valueTwo": second}


def merged(base: dict[str, Any], own: dict[str, Any], machine: str = "x86_64") -> dict[str, Any]:
    return intersection(base, own, machine).profile


@pytest.mark.parametrize("seed", range(300))
def test_the_intersection_permits_nothing_that_a_profile_refuses(seed: int) -> None:
    rnd = Random(seed)
    base, own = random_profile(rnd), random_profile(rnd)
    found = merged(base, own)
    for name, a, b in itertools.product(("chmod", "socket", "kill", "read"), range(5), range(5)):
        wanted = max(strictness(one, name, (a, b)) for one in (base, own))
        assert strictness(found, name, (a, b)) >= wanted, (name, a, b, base, own, found)


@pytest.mark.parametrize("seed", range(100))
def test_an_intersection_is_what_runtimes_load_for_certain(seed: int) -> None:
    rnd = Random(seed)
    found = merged(random_profile(rnd), random_profile(rnd))
    for name in ("chmod", "socket", "kill"):
        rules = [one.get("args") or [] for one in found["syscalls"] if name in one["names"]]
        assert len(rules) <= 1 or all(len(args) == 1 for args in rules)


@pytest.mark.parametrize(
    ("base", "own", "open_to", "closed_to"),
    [
        # Refusals of either side.
        (
            profile(rule("chmod", args=[when(1, 511)])),
            profile(rule("chmod", args=[when(1, 0)])),
            [(0, 1)],
            [(0, 511), (0, 0)],
        ),
        # A refusal under a default that refuses.
        (
            profile(rule("chmod", action="SCMP_ACT_ALLOW"), default="SCMP_ACT_ERRNO"),
            profile(rule("chmod", args=[when(1, 511)])),
            [(0, 1), (0, 0)],
            [(0, 511)],
        ),
        # Permissions for different arguments.
        (
            profile(
                rule("chmod", action="SCMP_ACT_ALLOW", args=[when(0, 3)]), default="SCMP_ACT_ERRNO"
            ),
            profile(
                rule("chmod", action="SCMP_ACT_ALLOW", args=[when(1, 5, "SCMP_CMP_LT")]),
                default="SCMP_ACT_ERRNO",
            ),
            [(3, 4)],
            [(3, 5), (2, 4)],
        ),
        # A range cannot be said.
        (
            profile(
                rule("chmod", action="SCMP_ACT_ALLOW", args=[when(0, 2, "SCMP_CMP_GT")]),
                default="SCMP_ACT_ERRNO",
            ),
            profile(
                rule("chmod", action="SCMP_ACT_ALLOW", args=[when(0, 9, "SCMP_CMP_LT")]),
                default="SCMP_ACT_ERRNO",
            ),
            [],
            [(5, 0), (1, 0)],
        ),
    ],
)
def test_conditions_meet(
    base: dict[str, Any],
    own: dict[str, Any],
    open_to: list[tuple[int, int]],
    closed_to: list[tuple[int, int]],
) -> None:
    for first, second in ((base, own), (own, base)):
        found = merged(first, second)
        assert all(strictness(found, "chmod", args) == ALLOWED for args in open_to), found
        assert all(strictness(found, "chmod", args) == REFUSED for args in closed_to), found


def test_the_default_keeps_its_sockets_unless_the_profile_takes_them() -> None:
    base = default_profile("x86_64", DEFAULT)
    found = merged(base, profile(rule("chmod")))
    assert strictness(found, "socket", (AF_INET,)) == ALLOWED
    assert strictness(found, "socket", (AF_ALG,)) == REFUSED
    assert strictness(found, "chmod", ()) == REFUSED
    assert strictness(found, "read", ()) == ALLOWED
    assert strictness(found, "reboot", ()) == REFUSED  # what the base alone refuses
    unix = profile(
        rule("socket", action="SCMP_ACT_ALLOW", args=[when(0, AF_UNIX)]),
        default="SCMP_ACT_ERRNO",
    )
    found = merged(base, unix)
    assert strictness(found, "socket", (AF_UNIX,)) == ALLOWED
    assert strictness(found, "socket", (AF_INET,)) == REFUSED


def test_of_equal_actions_the_base_names_the_error() -> None:
    base = profile(default="SCMP_ACT_ERRNO", defaultErrnoRet=1)
    own = profile(default="SCMP_ACT_ERRNO", defaultErrnoRet=38)
    assert merged(base, own)["defaultErrnoRet"] == 1


def test_an_architecture_needs_both_and_one_that_multiplexes_goes() -> None:
    base = default_profile("x86_64", DEFAULT)
    assert merged(base, profile())["architectures"] == ["SCMP_ARCH_X86_64"]
    both = ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    found = merged(base, profile(architectures=both))
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]


@pytest.mark.parametrize("machine", ["s390x", "ppc64le"])
def test_calls_behind_socketcall_are_not_reached_through_it(machine: str) -> None:
    own = profile(rule("connect"))
    base = profile(rule("socketcall", "connect", action="SCMP_ACT_ALLOW"), default="SCMP_ACT_ERRNO")
    assert strictness(merged(base, own, machine), "socketcall", ()) == REFUSED


def test_flags_loosen_only_together() -> None:
    spec, log = "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_LOG"
    assert "flags" not in merged(profile(), profile(flags=[spec]))
    assert merged(profile(flags=[spec]), profile(flags=[spec, log]))["flags"] == sorted([spec, log])


def test_a_wide_value_where_arguments_are_narrow_refuses() -> None:
    arches = ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    wide = rule("chmod", action="SCMP_ACT_ALLOW", args=[when(0, (1 << 32) + 1)])
    own = profile(wide, default="SCMP_ACT_ERRNO", architectures=arches)
    found = merged(profile(architectures=arches), own, "aarch64")
    assert strictness(found, "chmod", ((1 << 32) + 1,)) == REFUSED


def test_it_is_told_what_the_base_took() -> None:
    found = intersection(
        profile(rule("chmod"), default="SCMP_ACT_ALLOW"),
        profile(rule("chmod", "kill", action="SCMP_ACT_ALLOW"), default="SCMP_ACT_ERRNO"),
        "x86_64",
    )
    assert found.constrained == ("chmod",)


def test_the_base_of_a_request_is_the_default_or_a_file_instead(tmp_path: Any) -> None:
    document = json.dumps(profile(rule("chmod"))).encode()
    file = tmp_path / "base.json"
    file.write_text(json.dumps(profile(rule("mkdir"))))
    for base_ref, mkdir, mount in (("", ALLOWED, REFUSED), (str(file), REFUSED, ALLOWED)):
        security = ContainerSecurity(
            seccomp=SecurityProfile(type=ProfileType.OCI, oci_ref=REF, base_ref=base_ref)
        )
        found = seccomp_profile(
            security,
            machine="x86_64",
            capabilities=DEFAULT,
            pulled={REF: document}.__getitem__,
        )
        assert found is not None
        assert strictness(found.profile, "chmod", ()) == REFUSED
        assert strictness(found.profile, "mkdir", ()) == mkdir
        assert strictness(found.profile, "mount", ()) == mount


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"\x1f\x8b\x08", "not a seccomp profile"),
        (b"[]", "not a seccomp profile"),
        (b"{}", "defaultAction"),
        (profile(defaultaction="x"), "unknown field"),
        (b'{"defaultAction": "SCMP_ACT_LOG", "defaultAction": "SCMP_ACT_ALLOW"}', "twice"),
        (profile(default="SCMP_ACT_WRONG"), "SCMP_ACT_WRONG"),
        (profile(rule("read", action="SCMP_ACT_NOTIFY")), "listener"),
        (profile(listenerPath="/run/x"), "listener"),
        (profile(rule("read", args=[when(6, 0)])), "<= 5"),
        (profile(rule("read", args=[when(0, 1 << 64)])), "64"),
        (profile(rule("read", args=[when(0, -1)])), "64 bits"),
        (profile(rule("read", args=[when(0, 1, "==")])), "operator"),
        (profile(rule()), "0 names"),
        (profile(rule("")), "not the name"),
        (profile(rule("read\n")), "not the name"),
        (profile({**rule("read"), "errnoRet": 5000}), "4095"),
        (profile({**rule("read", action="SCMP_ACT_TRAP"), "errnoRet": 5}), "error number"),
        (profile(architectures=["X86"]), "architecture 'X86'"),
        (profile(flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), "flag"),
        (profile(flags=["SECCOMP_FILTER_FLAG_LOG"] * 2), "twice"),
        (profile(rule("read"), rule("read", action="SCMP_ACT_TRAP")), "contradict"),
        (profile(*[rule("read", args=[when(0, n)]) for n in range(257)]), "257 rules"),
        (profile(*[rule(*[f"n{n}" for n in range(1000)]) for _ in range(17)]), "too many"),
    ],
)
def test_a_wrong_document_is_refused_with_the_reason(document: Any, why: str) -> None:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(InvalidRequestError, match=why.replace("(", r"\(")):
        pulled_profile(data)


def test_a_name_that_no_kernel_has_is_let_through() -> None:
    assert pulled_profile(json.dumps(profile(rule("not_a_call"))).encode())["syscalls"]
