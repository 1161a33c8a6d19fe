# SPDX-License-Identifier: Apache-2.0
"""seccomp profiles, judged by what a filter made of them would answer to a call."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from criagent.base.capabilities import NAMES
from criagent.base.errors import InvalidRequestError
from criagent.model.common import ProfileType, SecurityProfile
from criagent.model.container import ContainerSecurity
from criagent.runtime.spec.security.capabilities import DEFAULT
from criagent.runtime.spec.security.seccomp import default_profile, seccomp_profile

ADMIN = frozenset({*DEFAULT, "CAP_SYS_ADMIN"})
ALLOW, EPERM, ENOSYS = "allow", 1, 38
CLONE_THREAD = 0x3D0F00  # what pthread_create passes
CLONE_FORK = 0x1200011
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x20000


def matches(rule: dict[str, Any], args: tuple[int, ...]) -> bool:
    for condition in rule.get("args", ()):
        value = args[condition["index"]]
        if condition["op"] == "SCMP_CMP_MASKED_EQ":
            if value & condition["value"] != condition.get("valueTwo", 0):
                return False
        elif condition["op"] == "SCMP_CMP_EQ":
            if value != condition["value"]:
                return False
        else:
            raise AssertionError(condition)
    return True


def answer(profile: dict[str, Any], call: str, *args: int) -> str | int:
    """What the kernel answers: of the rules that match, the strictest action wins."""
    answers: list[str | int] = []
    for rule in profile["syscalls"]:
        if call in rule["names"] and matches(rule, args):
            allowed = rule["action"] == "SCMP_ACT_ALLOW"
            answers.append(ALLOW if allowed else rule.get("errnoRet", EPERM))
    return next((a for a in answers if a != ALLOW), ALLOW if answers else EPERM)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "riscv64", "ppc64le", "s390x", "mips"])
def test_the_default_refuses_with_eperm_what_it_does_not_know(machine: str) -> None:
    profile = default_profile(machine, DEFAULT)
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["defaultErrnoRet"] == EPERM
    assert answer(profile, "nonsense") == EPERM
    json.dumps(profile)


def test_the_default_covers_the_abis_of_a_machine() -> None:
    assert default_profile("x86_64", DEFAULT)["architectures"] == [
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
    ]
    arm = default_profile("aarch64", DEFAULT)
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    assert answer(arm, "set_tls") == ALLOW


@pytest.mark.parametrize(
    "call",
    "read write openat execve mmap futex futex_waitv epoll_wait accept4 sendfile rseq statx prctl "
    "getrandom set_tid_address set_robust_list sigaltstack rt_sigaction wait4 vfork chown setuid "
    "capset setgroups mknod membarrier sched_setaffinity memfd_create io_setup seccomp ptrace "
    "landlock_create_ruleset pidfd_open close_range openat2 faccessat2 chroot".split(),
)
def test_ordinary_programs_run_under_the_default(call: str) -> None:
    assert answer(default_profile("x86_64", DEFAULT), call) == ALLOW


@pytest.mark.parametrize(
    "call",
    "io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key userfaultfd bpf "
    "perf_event_open mount umount2 pivot_root open_tree move_mount fsopen setns unshare reboot "
    "kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff acct syslog "
    "clock_settime settimeofday iopl ioperm open_by_handle_at quotactl nfsservctl socketcall "
    "sethostname kcmp lookup_dcookie mbind move_pages vhangup fanotify_init".split(),
)
def test_the_default_refuses_what_reaches_into_the_node(call: str) -> None:
    assert answer(default_profile("x86_64", DEFAULT), call) == EPERM


@pytest.mark.parametrize(
    "call", "io_uring_setup keyctl add_key kexec_load userfaultfd swapon socketcall".split()
)
def test_no_capability_opens_the_most_dangerous(call: str) -> None:
    assert answer(default_profile("x86_64", frozenset(NAMES)), call) == EPERM


@pytest.mark.parametrize(
    ("capability", "call"),
    [
        ("CAP_SYS_ADMIN", "mount"),
        ("CAP_SYS_ADMIN", "unshare"),
        ("CAP_SYS_ADMIN", "setns"),
        ("CAP_SYS_ADMIN", "sethostname"),
        ("CAP_SYS_BOOT", "reboot"),
        ("CAP_SYS_MODULE", "finit_module"),
        ("CAP_SYS_PTRACE", "kcmp"),
        ("CAP_SYS_TIME", "clock_settime"),
        ("CAP_SYS_NICE", "mbind"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_BPF", "bpf"),
        ("CAP_PERFMON", "perf_event_open"),
        ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    ],
)
def test_a_capability_opens_its_calls(capability: str, call: str) -> None:
    assert answer(default_profile("x86_64", DEFAULT | {capability}), call) == ALLOW
    assert answer(default_profile("x86_64", DEFAULT - {capability}), call) == EPERM


@pytest.mark.parametrize("call", ["socket"])
@pytest.mark.parametrize("upper", [0, 1 << 32, 0xFFFFFFFF << 32])
@pytest.mark.parametrize("capabilities", [DEFAULT, frozenset(NAMES)])
def test_dangerous_socket_families_are_refused_in_every_disguise(
    call: str, upper: int, capabilities: frozenset[str]
) -> None:
    # The kernel takes the family as an int: the upper half of the register does not count.
    profile = default_profile("x86_64", capabilities)
    for family in range(46):
        expected = EPERM if family in {38, 40} else ALLOW  # AF_ALG, AF_VSOCK
        assert answer(profile, call, family | upper, 1, 0) == expected, family
    assert answer(profile, call, 0x80000026, 1, 0) == EPERM
    assert answer(profile, call, 46 | upper, 1, 0) == EPERM


@pytest.mark.parametrize(("machine", "index"), [("x86_64", 0), ("aarch64", 0), ("s390x", 1)])
def test_clone_makes_processes_and_threads_but_no_namespaces(machine: str, index: int) -> None:
    def clone(profile: dict[str, Any], flags: int) -> str | int:
        args = [0, 0]
        args[index] = flags
        return answer(profile, "clone", *args)

    profile = default_profile(machine, DEFAULT)
    assert clone(profile, CLONE_THREAD) == clone(profile, CLONE_FORK) == ALLOW
    for flag in (CLONE_NEWUSER, CLONE_NEWNS, 0x2000000, 0x4000000, 0x8000000, 0x20000000,
                 0x40000000):  # fmt: skip
        assert clone(profile, CLONE_FORK | flag) == EPERM
        assert clone(default_profile(machine, ADMIN), CLONE_FORK | flag) == ALLOW


def test_clone3_looks_absent_so_that_libraries_fall_back_to_clone() -> None:
    assert answer(default_profile("x86_64", DEFAULT), "clone3") == ENOSYS
    assert answer(default_profile("x86_64", ADMIN), "clone3") == ALLOW


@pytest.mark.parametrize(
    ("persona", "expected"),
    [(0, ALLOW), (8, ALLOW), (0x20000, ALLOW), (0xFFFFFFFF, ALLOW), (0x40000, EPERM)],
)
def test_personality_may_not_turn_off_address_randomisation(
    persona: int, expected: str | int
) -> None:
    assert answer(default_profile("x86_64", DEFAULT), "personality", persona) == expected


def wants(kind: ProfileType, reference: str = "", **fields: bool) -> ContainerSecurity:
    profile = SecurityProfile(type=kind, localhost_ref=reference)
    return ContainerSecurity(seccomp=profile, **fields)  # type: ignore[arg-type]


def made(
    security: ContainerSecurity, machine: str = "x86_64", capabilities: frozenset[str] = DEFAULT
) -> dict[str, Any] | None:
    found = seccomp_profile(
        security, machine=machine, capabilities=capabilities, pulled=lambda ref: ref.encode()
    )
    return None if found is None else found.profile


@pytest.mark.parametrize(
    "security",
    [
        ContainerSecurity(),
        wants(ProfileType.UNCONFINED),
        wants(ProfileType.RUNTIME_DEFAULT, privileged=True),
        wants(ProfileType.LOCALHOST, "/does/not/exist", privileged=True),
    ],
)
def test_no_profile_unconfined_and_privileged_mean_none(security: ContainerSecurity) -> None:
    assert made(security) is None


def test_runtime_default_is_the_default_profile() -> None:
    assert made(wants(ProfileType.RUNTIME_DEFAULT)) == default_profile("x86_64", DEFAULT)


def local(tmp_path: Path, content: object) -> ContainerSecurity:
    path = tmp_path / "profile.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return wants(ProfileType.LOCALHOST, str(path))


def test_a_localhost_profile_in_the_oci_form_is_passed_on(tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 0,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
            {
                "names": ["socket"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 2**64 - 1, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    assert made(local(tmp_path, profile)) == profile
    assert made(wants(ProfileType.LOCALHOST, f"localhost/{tmp_path}/profile.json")) == profile


DOCKER = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "", "includes": {}, "args": []},
        {"name": "write", "action": "SCMP_ACT_ALLOW", "args": None, "excludes": {}},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["modify_ldt"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
        {"names": ["i386only"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["x86"]}},
        {"names": ["set_tls"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["fork"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "999.0"}},
    ],
}


@pytest.mark.parametrize(
    ("machine", "capabilities", "allowed"),
    [
        ("x86_64", DEFAULT, {"read", "write", "clone", "modify_ldt", "fork", "ptrace"}),
        ("x86_64", ADMIN, {"read", "write", "mount", "modify_ldt", "fork", "ptrace"}),
        ("aarch64", DEFAULT, {"read", "write", "clone", "set_tls", "ptrace"}),
    ],
)
def test_a_localhost_profile_in_dockers_form_is_decided_here(
    tmp_path: Path, machine: str, capabilities: frozenset[str], allowed: set[str]
) -> None:
    profile = made(local(tmp_path, DOCKER), machine, capabilities)
    assert profile is not None
    assert {name for rule in profile["syscalls"] for name in rule["names"]} == allowed
    assert {key for rule in profile["syscalls"] for key in rule} == {"names", "action"}
    assert len(profile["architectures"]) == 2
    assert "archMap" not in profile


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "malformed"),
        ("[]", "malformed"),
        ("{}", "defaultAction"),
        ('{"defaultAction": 1}', "malformed"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": "read"}', "malformed"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"]}]}', "action"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [7]}', "malformed"),
        ("[" * 100_000, "malformed"),
        ('{"defaultAction": "", "c": ' + "[" * 100_000 + "]" * 100_000 + "}", "malformed"),
        ("\x00", "malformed"),
        (" " * ((1 << 20) + 1), "larger than"),
    ],
)
def test_a_broken_localhost_profile_is_refused_with_its_path(
    tmp_path: Path, content: str, words: str
) -> None:
    security = local(tmp_path, content)
    with pytest.raises(InvalidRequestError, match=words) as caught:
        made(security)
    assert "profile.json" in str(caught.value)


@pytest.mark.parametrize(
    "reference", ["", "profile.json", "localhost/x.json", "/no/such.json", "/"]
)
def test_a_localhost_profile_that_is_no_file_is_refused(reference: str) -> None:
    with pytest.raises(InvalidRequestError, match="seccomp profile"):
        made(wants(ProfileType.LOCALHOST, reference))


def test_a_fifo_instead_of_a_profile_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidRequestError, match="not a regular file"):
        made(wants(ProfileType.LOCALHOST, str(tmp_path / "fifo")))
