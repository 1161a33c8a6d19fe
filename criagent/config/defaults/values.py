# SPDX-License-Identifier: Apache-2.0
"""The values of defaults in the forms of CRI-O: "nofile=1024:2048", "/dev/sdc:/dev/xvdc:rwm".

Each parser raises ValueError with what is wrong, and what would be right; each check is called with
the whole list of its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from criagent.base.capabilities import NAMES

# What containers hold by default with containerd and Docker, for which images were tested.
CAPABILITIES = tuple(
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
    "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE".split()
)
UNLIMITED = 2**64 - 1  # RLIM_INFINITY, as OCI has it
ZONES = Path("/usr/share/zoneinfo")
_LIMITS = frozenset(  # man 2 getrlimit
    "as core cpu data fsize locks memlock msgqueue nice nproc rss rtprio rttime sigpending "
    "stack".split()
)
_NUMBER = re.compile(r"[0-9]{1,19}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,3}")
_SYSCTL = re.compile(r"[a-z][a-z0-9_]*(?:[./][A-Za-z0-9_:-]+)+")
_PLAIN = re.compile(r"[A-Za-z0-9_.,:\t -]{1,4096}")
_UTS = frozenset({"kernel.hostname", "kernel.domainname"})
_IPC = re.compile(r"kernel\.(shm[a-z_]+|msg[a-z_]+|sem|auto_msgmni)|fs\.mqueue\.[a-z_]+")
_MOST_TIMES = 128  # of one list


class Ulimit(NamedTuple):
    """A resource limit as OCI names it, such as RLIMIT_NPROC."""

    type: str
    soft: int
    hard: int


class DevicePath(NamedTuple):
    """A device of the node and where a container has it; `access` is of "rwm"."""

    host: str
    container: str
    access: str


def ulimit(text: str) -> Ulimit:
    """The limit of "NAME=SOFT" or "NAME=SOFT:HARD"; "unlimited" and -1 are no limit."""
    name, equals, pair = text.partition("=")
    if name.lower() == "nofile":
        raise ValueError("nofile has keys of its own: runtime.nofile_soft and runtime.nofile_hard")
    if not equals or name.lower() not in _LIMITS:
        names = ", ".join(sorted(_LIMITS))
        raise ValueError(f'{text[:80]!r} is not "NAME=SOFT:HARD" with a NAME of {names}')
    first, colon, second = pair.partition(":")
    soft = _amount(text, first)
    hard = _amount(text, second) if colon else soft
    if soft > hard:
        raise ValueError(f"{text[:80]!r}: the soft limit is above the hard one")
    return Ulimit(f"RLIMIT_{name.upper()}", soft, hard)


def _amount(whole: str, text: str) -> int:
    if text in {"-1", "unlimited"}:
        return UNLIMITED
    if not _NUMBER.fullmatch(text):
        raise ValueError(f'{whole[:80]!r}: {text[:40]!r} is neither a number nor "unlimited"')
    return int(text)


def ulimits(texts: Sequence[str]) -> None:
    """Limits, each once."""
    _once("ulimit", [ulimit(text).type for text in texts])


def variable(text: str) -> tuple[str, str]:
    """Name and value of "NAME=VALUE"."""
    name, equals, value = text.partition("=")
    if not equals or not _VARIABLE.fullmatch(name) or "\0" in value:
        raise ValueError(f'{text[:80]!r} is not a variable "NAME=VALUE"')
    return name, value


def environment(texts: Sequence[str]) -> None:
    """Variables, each once."""
    _once("variable", [variable(text)[0] for text in texts])


def sysctl(text: str) -> tuple[str, str]:
    """Name, with dots, and value of "NAME=VALUE"."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ValueError(f'{text[:80]!r} is not a sysctl "NAME=VALUE"')
    if problem := sysctl_problem(name, value):
        raise ValueError(problem)
    if sysctl_namespace(name) == "uts":
        raise ValueError(f"sysctl {name} is not for all pods: each has a hostname of its own")
    if sysctl_namespace(name) == "":
        raise ValueError(
            f"sysctl {name} does not belong to a pod's namespaces; set it on the node, in "
            "/etc/sysctl.d"
        )
    return normalised(name), value


def sysctls(texts: Sequence[str]) -> None:
    """Sysctls of namespaces, each once."""
    _once("sysctl", [sysctl(text)[0] for text in texts])


def sysctl_problem(name: str, value: str) -> str:
    """What is wrong with the form of a sysctl; "" = nothing. One plain value only, so that it
    cannot smuggle another one in (CVE-2022-0811).
    """
    if not _SYSCTL.fullmatch(name) or ".." in normalised(name) or "//" in name:
        return f"sysctl {name[:120]!r} is not a sysctl name"
    if not _PLAIN.fullmatch(value):
        return (
            f"sysctl {name}: the value {value[:80]!r} is not plain; "
            "use only letters, digits, spaces and _.,:-"
        )
    return ""


def sysctl_namespace(name: str) -> str:
    """The namespace that a sysctl belongs to: "net", "ipc" or "uts"; "" = it is the node's."""
    dotted = normalised(name)
    if dotted.startswith("net."):
        return "net"
    if _IPC.fullmatch(dotted):
        return "ipc"
    return "uts" if dotted in _UTS else ""


def normalised(name: str) -> str:
    """`name` with dots; "net/ipv4/conf/eth0.1/x" keeps its inner dots as slashes (man 8 sysctl)."""
    first_dot, first_slash = name.find("."), name.find("/")
    if first_slash >= 0 and (first_dot < 0 or first_slash < first_dot):
        return name.translate(str.maketrans("./", "/."))
    return name


def capability(name: str) -> str:
    """The name with its CAP_."""
    full = name.upper() if name.upper().startswith("CAP_") else f"CAP_{name.upper()}"
    if full not in NAMES:
        raise ValueError(f"{name[:40]!r} is not a capability (man 7 capabilities)")
    return full


def capabilities(names: Sequence[str]) -> None:
    """Capabilities, each once."""
    _once("capability", [capability(name) for name in names])


def device(text: str) -> DevicePath:
    """The device of "HOST", "HOST:ACCESS", "HOST:CONTAINER" or "HOST:CONTAINER:ACCESS"."""
    host, *more = text.split(":")
    access = "rwm"
    if more and _is_access(more[-1]):
        access = more.pop()
    container = more.pop() if more else host
    if more:
        raise ValueError(f'{text[:120]!r} is not "HOST:CONTAINER:ACCESS"')
    for path in (host, container):
        if not path.startswith("/") or "\0" in path or {"..", "."} & set(path.split("/")):
            raise ValueError(f"{text[:120]!r}: {path[:80]!r} is not a plain absolute path")
    if not container.startswith("/dev/"):
        raise ValueError(f"{text[:120]!r}: {container[:80]!r} is not below /dev")
    return DevicePath(host, container, access)


def _is_access(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def devices(texts: Sequence[str]) -> None:
    """Devices, each once in the container."""
    _once("device", [device(text).container for text in texts])


def device_paths(texts: Sequence[str]) -> None:
    """Paths of devices of the node."""
    for text in texts:
        if not text.startswith("/dev/") or ".." in text.split("/"):
            raise ValueError(f"{text[:120]!r} is not the path of a device below /dev")


def time_zone(name: str) -> None:
    """The name of a zone that is installed, "local", or nothing."""
    if name in {"", "local"}:
        return
    if not _ZONE.fullmatch(name):
        raise ValueError(f'{name[:80]!r} is neither "local" nor a time zone such as Europe/Berlin')
    if not (ZONES / name).is_file():
        raise ValueError(
            f"time zone {name!r} is not in {ZONES}; install the package tzdata, or correct the name"
        )


def seccomp_profile(name: str) -> None:
    """unconfined, runtime/default, or the absolute path of a profile."""
    if name in {"unconfined", "runtime/default"}:
        return
    if not name.startswith("/") or "\0" in name:
        raise ValueError(
            f'must be "unconfined", "runtime/default" or the absolute path of a profile, not '
            f"{name[:120]!r}"
        )


def absolute_paths(texts: Sequence[str]) -> None:
    """Absolute paths without "." and ".."."""
    for text in texts:
        if not text.startswith("/") or "\0" in text or {"..", "."} & set(text.split("/")):
            raise ValueError(f"{text[:120]!r} is not a plain absolute path")


def _once(what: str, names: Sequence[str]) -> None:
    if len(names) > _MOST_TIMES:
        raise ValueError(f"more than {_MOST_TIMES} values")
    for name in _repeated(names):
        raise ValueError(f"{what} {name} is given twice")


def _repeated(names: Sequence[str]) -> Iterator[str]:
    return (name for name in names if names.count(name) > 1)
