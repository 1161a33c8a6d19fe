# SPDX-License-Identifier: Apache-2.0
"""What containers of this node have when their pods do not say otherwise."""

from __future__ import annotations

import dataclasses
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from criagent.config.defaults import values
from criagent.config.defaults.values import CAPABILITIES, UNLIMITED, DevicePath, Ulimit
from criagent.config.runtime_section import Runtime
from criagent.model.common import ProfileType, SecurityProfile
from criagent.runtime.node.workloads import Workloads

if TYPE_CHECKING:
    from criagent.runtime.node.hooks import HookFolders

_LOCALTIME = Path("/etc/localtime")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerDefaults:
    """Defaults of containers, in the form that specifications need."""

    environment: tuple[str, ...] = ()  # "NAME=VALUE"
    ulimits: tuple[Ulimit, ...] = ()  # already clamped to what may be set
    capabilities: frozenset[str] = frozenset(f"CAP_{name}" for name in CAPABILITIES)
    inheritable_capabilities: bool = False
    pids_limit: int = 0  # 0 = none
    min_gomaxprocs: int = 0  # 0 = the variable is not set
    time_zone: str = ""  # a name, "local" or ""
    seccomp: SecurityProfile | None = None  # of containers whose pod names none
    devices: tuple[DevicePath, ...] = ()
    allowed_devices: frozenset[str] = frozenset()  # that pods may name
    workloads: Workloads = Workloads()
    hooks: HookFolders | None = None

    def localtime(self) -> str:
        """The file of the time zone; "" = the image decides. Reads links of the node."""
        if not self.time_zone:
            return ""
        if self.time_zone == "local":
            return os.path.realpath(_LOCALTIME) if _LOCALTIME.exists() else ""
        return os.path.realpath(values.ZONES / self.time_zone)


def container_defaults(section: Runtime, held: frozenset[str]) -> ContainerDefaults:
    """The defaults of a checked configuration; `held` are the capabilities of the agent."""
    defaults = section.defaults
    return ContainerDefaults(
        environment=defaults.environment,
        ulimits=tuple(_clamped(values.ulimit(text), held) for text in defaults.ulimits),
        capabilities=frozenset(values.capability(name) for name in defaults.capabilities),
        inheritable_capabilities=defaults.inheritable_capabilities,
        pids_limit=defaults.pids_limit,
        min_gomaxprocs=defaults.min_gomaxprocs,
        time_zone=defaults.time_zone,
        seccomp=_profile(defaults.unset_seccomp_profile),
        devices=tuple(values.device(text) for text in defaults.devices),
        allowed_devices=frozenset(section.allowed_devices),
        workloads=Workloads(section.workloads),
        hooks=_hooks(defaults.hooks_dirs),
    )


def default_sysctls(texts: tuple[str, ...]) -> Mapping[str, str]:
    """Sysctls of pods by their names, with dots."""
    return dict(values.sysctl(text) for text in texts)


def _profile(name: str) -> SecurityProfile | None:
    if name == "unconfined":
        return None
    if name == "runtime/default":
        return SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)
    return SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref=name)


def _hooks(folders: tuple[Path, ...]) -> HookFolders | None:
    if not folders:
        return None
    from criagent.runtime.node.hooks import HookFolders  # few nodes have hooks

    return HookFolders(folders)


def _clamped(limit: Ulimit, held: frozenset[str]) -> Ulimit:
    """What the agent may set: it cannot raise limits without CAP_SYS_RESOURCE (man 2 getrlimit)."""
    _, most = resource.getrlimit(getattr(resource, limit.type))
    if "CAP_SYS_RESOURCE" in held or most == resource.RLIM_INFINITY or limit.hard <= most:
        return limit
    log.warning(
        "ulimit_limited",
        type=limit.type,
        asked="unlimited" if limit.hard == UNLIMITED else limit.hard,
        to=most,
        reason="no CAP_SYS_RESOURCE: containers cannot have a higher limit than the agent",
    )
    return limit._replace(soft=min(limit.soft, most), hard=most)
