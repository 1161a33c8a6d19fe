# SPDX-License-Identifier: Apache-2.0
"""Defaults of containers that cannot work on this node."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.base.errors import AgentError
from criagent.config.defaults import values
from criagent.config.runtime_section import Runtime
from criagent.config.sections import Config
from criagent.doctor.finding import Finding, error, fine, warning
from criagent.runtime.node.facts import controllers, held_capabilities
from criagent.runtime.node.hooks import HookFolders, Subject

_NAME = "defaults"
_JOURNAL = Path("/run/systemd/journal/socket")
_SYSCTLS = Path("/proc/sys")


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultsFacts:
    """What the node lacks of what the configuration names."""

    no_hook_folders: tuple[Path, ...] = ()
    hook_problem: str = ""
    no_devices: tuple[str, ...] = ()
    no_sysctls: tuple[str, ...] = ()
    limited: tuple[str, ...] = ()  # ulimits above what the agent may set
    no_profile: str = ""  # the seccomp profile of containers whose pod names none
    controllers: frozenset[str] = frozenset({"pids"})
    journal: bool = True


def read(config: Config) -> DefaultsFacts:
    """Look at files, devices and limits. The configuration has been checked before."""
    runtime = config.runtime
    section = runtime.defaults
    profile = Path(section.unset_seccomp_profile)
    return DefaultsFacts(
        no_hook_folders=tuple(path for path in section.hooks_dirs if not path.is_dir()),
        hook_problem=_hook_problem(section.hooks_dirs),
        no_devices=tuple(
            device.host
            for device in map(values.device, section.devices)
            if not Path(device.host).exists()
        ),
        no_sysctls=tuple(
            name for name, _ in map(values.sysctl, section.sysctls) if not _file(name).exists()
        ),
        limited=tuple(_limited(runtime)),
        no_profile=str(profile) if profile.is_absolute() and not profile.is_file() else "",
        controllers=controllers(),
        journal=_JOURNAL.is_socket(),
    )


def judge(facts: DefaultsFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    found = [*_refusals(facts, config), *_without_effect(facts, config)]
    yield from found or [fine(_NAME, "what [runtime.defaults] names is there")]


def _refusals(facts: DefaultsFacts, config: Config) -> Iterator[Finding]:
    """What refuses every container or pod."""
    if facts.hook_problem:
        yield error(_NAME, facts.hook_problem, "correct the hook; until then no container starts")
    for path in facts.no_devices:
        yield error(
            _NAME,
            f"the device {path} of runtime.defaults.devices does not exist: every container is "
            "refused",
            "load its driver, or remove it from the key",
        )
    for name in facts.no_sysctls:
        yield error(
            _NAME,
            f"this kernel has no sysctl {name} of runtime.defaults.sysctls: every pod is refused",
            "load the module that it belongs to, or remove it from the key",
        )
    if facts.no_profile:
        yield error(
            _NAME,
            f"runtime.defaults.unset_seccomp_profile {facts.no_profile} does not exist: containers "
            "without a profile of their own are refused",
            "install the profile, or correct the key",
        )
    lacking = "pids" not in facts.controllers and config.runtime.missing_controllers == "error"
    if config.runtime.defaults.pids_limit and lacking:
        yield error(
            _NAME,
            "runtime.defaults.pids_limit needs the cgroup controller pids: every container is "
            "refused",
            "delegate the controller to the agent, or set the key to 0",
        )


def _without_effect(facts: DefaultsFacts, config: Config) -> Iterator[Finding]:
    for folder in facts.no_hook_folders:
        yield warning(
            _NAME,
            f"the directory {folder} of runtime.defaults.hooks_dirs does not exist: its hooks do "
            "not run",
            "create it, or remove it from the key",
        )
    for text in facts.limited:
        yield warning(
            _NAME,
            f"{text} of runtime.defaults.ulimits is above the agent's own limit, which containers "
            "get instead",
            "give criagent.service CAP_SYS_RESOURCE, or lower the value",
        )
    if config.runtime.log_to_journald and not facts.journal:
        yield warning(
            _NAME,
            f"runtime.log_to_journald is on, but nothing listens at {_JOURNAL}: output of "
            "containers is in files only",
            "start systemd-journald, or turn the key off",
        )


def _hook_problem(folders: tuple[Path, ...]) -> str:
    nothing = Subject(command="", annotations={}, bind_mounts=False)
    try:
        HookFolders(folders).of(nothing)
    except AgentError as problem:
        return str(problem)
    return ""


def _file(name: str) -> Path:
    return _SYSCTLS / name.translate(str.maketrans("./", "/."))


def _limited(runtime: Runtime) -> Iterator[str]:
    if "CAP_SYS_RESOURCE" in held_capabilities():
        return
    for text in runtime.defaults.ulimits:
        limit = values.ulimit(text)
        _, most = resource.getrlimit(getattr(resource, limit.type))
        if most != resource.RLIM_INFINITY and limit.hard > most:
            yield text
