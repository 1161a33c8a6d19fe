# SPDX-License-Identifier: Apache-2.0
"""Defaults of containers and annotations of pods, as other programs write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from criagent.config.defaults import base_spec, pod_annotations, values
from criagent.config.defaults.json_file import FileError
from criagent.config.migrate.migration import Migration, Where, shown
from criagent.config.migrate.rules import Rule, below, number, size_bytes

_RESOURCES = {
    "cpushares": "cpu_shares",
    "cpuquota": "cpu_quota",
    "cpuperiod": "cpu_period",
    "cpuset": "cpuset_cpus",
}
_WORKLOAD = ("activation_annotation", "annotation_prefix")
_SECCOMP = {"docker/default": "runtime/default", "": "unconfined"}


def each(key: str, check: Callable[[str], object]) -> Rule:
    """Set the list `key`; entries that the agent refuses are left one by one."""

    def rule(migration: Migration, where: Where, value: Any) -> None:
        take_each(migration, where, key, [(str(entry), str(entry)) for entry in value], check)

    return rule


def take_each(
    migration: Migration,
    where: Where,
    key: str,
    entries: Iterable[tuple[object, str]],
    check: Callable[[str], object],
) -> None:
    """Set the list `key` of the second of each pair; the first is how the other program has it."""
    good = []
    for given, text in entries:
        try:
            check(text)
        except ValueError as error:
            migration.left(where, f"{shown(given)}: {error}")
        else:
            good.append(text)
    if good:
        migration.take(where, key, good)
    elif not list(entries):
        migration.default(where)


def ulimits(
    migration: Migration, where: Where, limits: Iterable[tuple[object, str, int, int]]
) -> None:
    """Take limits: each as the other program writes it, with its name, soft and hard value."""
    rest = []
    for given, name, soft, hard in limits:
        if name == "nofile":
            migration.take(where, "runtime.nofile_soft", soft)
            migration.take(where, "runtime.nofile_hard", hard)
        else:
            rest.append((given, f"{name}={soft}:{hard}"))
    if rest:
        take_each(migration, where, "runtime.defaults.ulimits", rest, values.ulimit)


def parsed_ulimit(text: str) -> tuple[object, str, int, int]:
    """CRI-O's "nofile=1024:2048". Raises ValueError."""
    name, _, pair = text.partition("=")
    soft, _, hard = pair.partition(":")
    return text, name, int(soft), int(hard or soft)


def seccomp(migration: Migration, where: Where, value: Any) -> None:
    """containerd's unset_seccomp_profile."""
    name = _SECCOMP.get(str(value), str(value).removeprefix("localhost/"))
    migration.take(where, "runtime.defaults.unset_seccomp_profile", name)


def of_handler(migration: Migration, where: Where, entry: Mapping[str, Any]) -> dict[str, object]:
    """The keys of a handler about what its containers get and its pods may ask for."""
    taken: dict[str, object] = {}
    if file := entry.get("base_runtime_spec"):
        try:
            base_spec.read(Path(str(file)))
        except FileError as error:
            migration.left(below(where, "base_runtime_spec"), str(error))
        else:
            taken["base_runtime_spec"] = str(file)
    if size := entry.get("container_min_memory"):
        at = below(where, "container_min_memory")
        try:
            taken["min_memory_bytes"] = memory(size)
        except ValueError as error:
            migration.left(at, f"{shown(size)}: {error}")
    if names := allowed(migration, where, entry):
        taken["allowed_annotations"] = names
    return taken


def memory(value: object) -> int:
    """Bytes of "12 MiB" or "500KiB". Raises ValueError."""
    return size_bytes(str(value).replace(" ", ""))


def allowed(migration: Migration, where: Where, entry: Mapping[str, Any]) -> list[str]:
    """Those of CRI-O's allowed_annotations that the agent obeys; the others are left."""
    names = [str(name) for name in entry.get("allowed_annotations") or []]
    others = [name for name in names if name not in pod_annotations.KNOWN]
    if others:
        known = ", ".join(pod_annotations.KNOWN)
        text = f"{shown(others)}: are not obeyed; those that are: {known}"
        migration.left(below(where, "allowed_annotations"), text)
    return [name for name in names if name not in others]


def workloads(migration: Migration, where: Where, value: Any) -> None:
    """CRI-O's [crio.runtime.workloads]."""
    for name, entry in value.items():
        at = below(where, name)
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", name):
            migration.left(at, "a name of a workload has letters, digits, - and _")
            continue
        taken = {key: entry[key] for key in _WORKLOAD if entry.get(key)}
        if names := allowed(migration, at, entry):
            taken["allowed_annotations"] = names
        for key, amount in (entry.get("resources") or {}).items():
            if key not in _RESOURCES:
                migration.left(below(at, "resources", key), f"{shown(amount)}: has no counterpart")
                continue
            try:
                converted = amount if key == "cpuset" else number(amount)
            except ValueError as error:
                migration.left(below(at, "resources", key), f"{shown(amount)}: {error}")
                continue
            if converted:
                taken[_RESOURCES[key]] = converted
        migration.take(at, f"runtime.workloads.{name}", taken)
