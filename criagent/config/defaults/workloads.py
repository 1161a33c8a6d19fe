# SPDX-License-Identifier: Apache-2.0
"""Workloads: what pods with a certain annotation get, as CRI-O's [crio.runtime.workloads]."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from criagent.config.defaults import pod_annotations
from criagent.config.hints import meant
from criagent.config.keys import key, metadata

# A key of a Kubernetes annotation: an optional DNS name, "/", and a name of at most 63 characters.
_ANNOTATION = re.compile(r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([\w.-]{0,61}\w)?")
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_CPUSET = re.compile(r"[0-9]{1,6}(-[0-9]{1,6})?(,[0-9]{1,6}(-[0-9]{1,6})?)*")
_LEAST_SHARES, _MOST_SHARES = 2, 262144  # as runtimes convert them for cgroup v2
_LEAST_TIME, _MOST_PERIOD = 1000, 1_000_000  # microseconds (kernel/sched, cpu.max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What pods with an annotation get."""

    activation_annotation: str = field(
        metadata=metadata("Pods with an annotation of this name belong to the workload.")
    )
    annotation_prefix: str = key(
        "The annotation PREFIX/CONTAINER of a pod replaces the resources of one container, as "
        '{"cpushares": 512, "cpuset": "0-1"}. Empty lets no pod do that.',
        default="",
    )
    allowed_annotations: tuple[str, ...] = key(
        "Annotations that these pods may use, as a handler's key of that name.",
        default=(),
    )
    cpu_shares: int = key(
        "CPU shares of each container, 0 = those of the request.",
        default=0,
    )
    cpu_quota: int = key(
        "CPU quota of each container in microseconds for each period, 0 = that of the request.",
        default=0,
    )
    cpu_period: int = key(
        "CPU period of each container in microseconds, 0 = that of the request.",
        default=0,
    )
    cpuset_cpus: str = key(
        'CPUs of each container, such as "0-3,7"; empty = those of the request.',
        default="",
    )


def unknown_keys(name: str, workloads: object) -> list[str]:
    """Keys that no workload has."""
    known = {f.name for f in fields(Workload)}
    return [
        f"{name}.{workload}.{key}: unknown key{meant(key, known)}"
        for workload, entry in (workloads.items() if isinstance(workloads, dict) else ())
        if isinstance(entry, dict)
        for key in entry
        if key not in known
    ]


def workload_problems(workload: Workload) -> Iterator[tuple[str, str]]:
    """Each key with a wrong value, and what is wrong."""
    if not _ANNOTATION.fullmatch(workload.activation_annotation):
        shown = repr(workload.activation_annotation[:120])
        yield "activation_annotation", f"{shown} is not the name of an annotation"
    if workload.annotation_prefix and not _PREFIX.fullmatch(workload.annotation_prefix):
        shown = repr(workload.annotation_prefix[:120])
        yield "annotation_prefix", f"{shown} is not a DNS name such as resources.example.com"
    if text := pod_annotations.problem(workload.allowed_annotations):
        yield "allowed_annotations", text
    for name, number in (
        ("cpu_shares", workload.cpu_shares),
        ("cpu_quota", workload.cpu_quota),
        ("cpu_period", workload.cpu_period),
        ("cpuset_cpus", workload.cpuset_cpus),
    ):
        if text := resource_problem(name, number):
            yield name, text


def resource_problem(name: str, value: int | str) -> str:
    """What is wrong with a value of a workload's resource; "" = nothing. 0 and "" are none."""
    if isinstance(value, str):
        good = not value or (len(value) < 4096 and _CPUSET.fullmatch(value))
        return "" if good else f"{value[:80]!r} is not a list of CPUs such as 0-3,7"
    least, most = {
        "cpu_shares": (_LEAST_SHARES, _MOST_SHARES),
        "cpu_quota": (_LEAST_TIME, 2**63 - 1),
        "cpu_period": (_LEAST_TIME, _MOST_PERIOD),
    }[name]
    return "" if not value or least <= value <= most else f"must be {least} to {most}, not {value}"
