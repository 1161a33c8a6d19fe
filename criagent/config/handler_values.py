# SPDX-License-Identifier: Apache-2.0
"""Wrong values in a handler's keys: arguments that the agent gives itself, patterns, limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from criagent.config.defaults import pod_annotations
from criagent.config.defaults.json_file import FileError
from criagent.config.runtime_section import Handler, Runtime

LEAST_CREATE_S = 30.0  # CRI-O raises lower values of container_create_timeout to it
# Annotations by which crun and systemd do what the node's root may: load libraries into the
# runtime, open files, set properties of units (CVE-2024-3154). No wildcard reaches them.
PRIVILEGED_PREFIXES = ("run.oci.", "org.systemd.property.")

# Global arguments of the runtimes that the agent gives, or whose effect it has to know.
_OWN = {
    "root": "the agent keeps the state of each handler in a directory of its own",
    "systemd-cgroup": "set runtime.cgroup_driver",
    "cgroup-manager": "set runtime.cgroup_driver",
    "ignore-cgroups": "limits, statistics and kills of containers need their cgroups",
    "log": "the agent reads the errors of the program from its stderr",
    "log-format": "the agent reads the errors of the program from its stderr",
    "rootless": "the agent runs the program as root",
}
_SUBCOMMANDS = frozenset(
    "checkpoint create delete events exec features kill list pause ps restore resume run spec "
    "start state update version help".split()
)


def handler_problems(handler: Handler, runtime: Runtime, *, cni: bool) -> Iterator[tuple[str, str]]:
    """Each key with a wrong value, and what is wrong; `cni` says that pods are on CNI networks."""
    for argument in handler.arguments:
        if problem := _argument_problem(argument):
            yield "arguments", problem
    for key in ("pod_annotations", "container_annotations"):
        for pattern in getattr(handler, key):
            if problem := _pattern_problem(pattern):
                yield key, problem
    limit_s = handler.create_timeout_s
    if limit_s and not LEAST_CREATE_S <= limit_s < float("inf"):
        yield "create_timeout_s", f"must be 0, or {LEAST_CREATE_S:.0f} or more, not {limit_s}"
    elif limit_s > runtime.create_timeout_s:
        text = f"{limit_s} is above runtime.create_timeout_s {runtime.create_timeout_s}; raise that"
        yield "create_timeout_s", text
    if handler.cni_conf_dir and not handler.cni_conf_dir.startswith("/"):
        yield "cni_conf_dir", f"must be an absolute path, not {handler.cni_conf_dir[:200]!r}"
    elif handler.cni_conf_dir and not cni:
        yield "cni_conf_dir", 'needs network.backend = "cni"; set it, or remove the key'
    if (
        handler.privileged_without_host_devices_all_devices_allowed
        and not handler.privileged_without_host_devices
    ):
        key = "privileged_without_host_devices_all_devices_allowed"
        yield key, "needs privileged_without_host_devices = true; set it, or remove the key"

    yield from _default_problems(handler)


def _default_problems(handler: Handler) -> Iterator[tuple[str, str]]:
    """Wrong values of the keys about what containers get."""
    if text := pod_annotations.problem(handler.allowed_annotations):
        yield "allowed_annotations", text
    if handler.min_memory_bytes < 0:
        yield "min_memory_bytes", f"must be 0 or greater, not {handler.min_memory_bytes}"
    file = handler.base_runtime_spec
    if file and not file.startswith("/"):
        yield "base_runtime_spec", f"must be an absolute path, not {file[:200]!r}"
    elif file:
        from criagent.config.defaults import base_spec  # few handlers have one

        try:
            base_spec.read(Path(file))
        except FileError as error:
            yield "base_runtime_spec", str(error)


def _argument_problem(argument: str) -> str:
    shown = repr(argument[:80])
    if not argument or "\0" in argument:
        return f"{shown} is not an argument of a program"
    if argument in _SUBCOMMANDS:
        return f"{shown} is a subcommand; set global arguments only, they come before it"
    if not argument.startswith("-"):
        return ""  # the value of the argument before it
    name = argument.lstrip("-").partition("=")[0]
    reason = _OWN.get(name, "")
    return f"{shown} is not allowed: {reason}" if reason else ""


def _pattern_problem(pattern: str) -> str:
    shown = repr(pattern[:160])
    fixed = fixed_part(pattern)
    if not pattern or "[" in pattern or "\\" in pattern:
        return f"{shown} is not a name of annotations; only * and ? stand for other characters"
    if not fixed:
        return f"{shown} would let every pod choose what the program does; name a prefix"
    if fixed != pattern and any(_overlap(fixed, prefix) for prefix in PRIVILEGED_PREFIXES):
        names = " and ".join(f"{prefix}*" for prefix in PRIVILEGED_PREFIXES)
        return f"{shown} covers {names}, which act as root of the node; list names one by one"
    return ""


def fixed_part(pattern: str) -> str:
    """The characters before the first wildcard."""
    return re.split(r"[*?]", pattern, maxsplit=1)[0]


def _overlap(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)
