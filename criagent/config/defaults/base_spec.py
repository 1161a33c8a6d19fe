# SPDX-License-Identifier: Apache-2.0
"""A base OCI specification: a file whose parts every container of a handler gets.

As containerd's base_runtime_spec, of which `ctr oci spec` prints one. Parts that follow from the
pod are the agent's own and are not read from it: docs/defaults.md lists what is taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from criagent.config.defaults.json_file import FileError, read_json
from criagent.config.defaults.values import capability, variable

_MOST = 4 << 20  # bytes of a file

Object = dict[str, Any]


class _Struct(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Keys that are not named are the agent's own, or not of OCI, and are skipped."""


class Rlimit(_Struct, frozen=True, kw_only=True):
    """A resource limit."""

    type: str
    soft: int
    hard: int


class Capabilities(_Struct, frozen=True, kw_only=True):
    """`bounding` is what containers hold by default."""

    bounding: tuple[str, ...] | None = None


class User(_Struct, frozen=True, kw_only=True):
    """The user is the pod's; only the umask is taken."""

    umask: int | None = None


class Process(_Struct, frozen=True, kw_only=True):
    """What is taken of the process."""

    env: tuple[str, ...] = ()
    rlimits: tuple[Rlimit, ...] = ()
    capabilities: Capabilities = Capabilities()
    user: User = User()
    scheduler: Object | None = None
    io_priority: Object | None = None
    exec_cpu_affinity: Object | None = msgspec.field(default=None, name="execCPUAffinity")


class Mount(_Struct, frozen=True, kw_only=True):
    """A mount."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()


class Hook(_Struct, frozen=True, kw_only=True):
    """A hook."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


class Hooks(_Struct, frozen=True, kw_only=True):
    """Hooks by their stage."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


class Device(_Struct, frozen=True, kw_only=True):
    """A device node. Its rule is among those of `linux.resources.devices`."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int = 0
    gid: int = 0


class Linux(_Struct, frozen=True, kw_only=True):
    """What is taken of the part for Linux. `resources` but for their rules of devices."""

    sysctl: dict[str, str] = {}
    resources: Object = {}
    devices: tuple[Device, ...] = ()
    intel_rdt: Object | None = None
    personality: Object | None = None
    memory_policy: Object | None = None


class BaseSpec(_Struct, frozen=True, kw_only=True):
    """What is taken of the file."""

    process: Process = Process()
    mounts: tuple[Mount, ...] = ()
    hooks: Hooks = Hooks()
    annotations: dict[str, str] = {}
    linux: Linux = Linux()


def read(path: Path) -> BaseSpec:
    """Raises FileError with the path, and the line or the key, for a file that cannot be used."""
    spec = read_json(path, BaseSpec, _MOST)
    try:
        for entry in spec.process.env:
            variable(entry)
        for name in spec.process.capabilities.bounding or ():
            capability(name)
    except ValueError as error:
        raise FileError(f"{path}: process: {error}") from None
    for number, mount in enumerate(spec.mounts):
        if not mount.destination.startswith("/"):
            raise FileError(f"{path}: mounts[{number}].destination: must be an absolute path")
    for number, limit in enumerate(spec.process.rlimits):
        if not limit.type.startswith("RLIMIT_") or not 0 <= limit.soft <= limit.hard:
            raise FileError(
                f"{path}: process.rlimits[{number}]: needs a type such as RLIMIT_NPROC, and a soft "
                "limit that is not above the hard one"
            )
    return spec
