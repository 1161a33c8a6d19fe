# SPDX-License-Identifier: Apache-2.0
"""Workloads: pods that an annotation marks, and what annotations of pods the agent obeys."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from criagent.base.errors import InvalidRequestError
from criagent.config.defaults.workloads import Workload, resource_problem
from criagent.model.common import Resources
from criagent.model.sandbox import SandboxSpec

if TYPE_CHECKING:
    from criagent.runtime.node.handlers import HandlerFacts

_LONGEST = 4096  # characters of an annotation with resources
# Names of resources in an annotation, as CRI-O has them, and the names of the keys.
_NAMES = {
    "cpushares": "cpu_shares",
    "cpuquota": "cpu_quota",
    "cpuperiod": "cpu_period",
    "cpuset": "cpuset_cpus",
}
_MILLICORES = "cpulimit"
_PERIOD, _LEAST_QUOTA = 100_000, 1000  # microseconds


@dataclasses.dataclass(frozen=True, slots=True)
class Workloads:
    """The configured workloads by their names."""

    by_name: Mapping[str, Workload] = dataclasses.field(default_factory=dict)

    def of(self, pod: SandboxSpec) -> Workload | None:
        """The workload of a pod; of several the first by name."""
        for name in sorted(self.by_name):
            if self.by_name[name].activation_annotation in pod.annotations:
                return self.by_name[name]
        return None

    def resources(self, pod: SandboxSpec, container: str, requested: Resources) -> Resources:
        """`requested` with what the pod's workload gives to the container of that name.

        Raises InvalidRequestError for an annotation of the pod that is not valid.
        """
        workload = self.of(pod) if self.by_name else None
        if workload is None:
            return requested
        given: dict[str, Any] = {name: getattr(workload, name) for name in _NAMES.values()}
        key = f"{workload.annotation_prefix}/{container}"
        if workload.annotation_prefix and key in pod.annotations:
            given |= _parsed(key, pod.annotations[key], given["cpu_period"])
        return dataclasses.replace(
            requested, **{name: value for name, value in given.items() if value}
        )

    def annotation(
        self, handler: HandlerFacts, pod: SandboxSpec, names: tuple[str, ...]
    ) -> tuple[str, str] | None:
        """Name and value of the first annotation of `names` that the pod has, and that its handler
        or its workload allows.
        """
        found = [name for name in names if name in pod.annotations]
        if not found:
            return None
        workload = self.of(pod)
        allowed = handler.allowed_annotations
        if workload is not None:
            allowed = allowed.union(workload.allowed_annotations)
        return next(((name, pod.annotations[name]) for name in found if name in allowed), None)


def _parsed(key: str, text: str, period: int) -> dict[str, Any]:
    """The resources of an annotation such as {"cpushares": 512, "cpuset": "0-1"}."""
    shown = f"annotation {key[:200]}"
    try:
        values = json.loads(text) if len(text) <= _LONGEST else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InvalidRequestError(
            f'{shown}: {text[:80]!r} is not a JSON object such as {{"cpushares": 512}}'
        )
    given: dict[str, Any] = {}
    for name, value in values.items():
        kind = str if name == "cpuset" else int
        if (
            name not in {*_NAMES, _MILLICORES}
            or not isinstance(value, kind)
            or isinstance(value, bool)
        ):
            known = ", ".join([*_NAMES, _MILLICORES])
            raise InvalidRequestError(
                f"{shown}: {name[:40]!r} is not a resource with a value of its kind; known are "
                f"{known}"
            )
        if name == _MILLICORES:
            continue
        if problem := resource_problem(_NAMES[name], value):
            raise InvalidRequestError(f"{shown}: {name}: {problem}")
        given[_NAMES[name]] = value
    if (millicores := values.get(_MILLICORES, 0)) > 0:
        period = given.get("cpu_period") or period or _PERIOD
        given["cpu_quota"] = max(_LEAST_QUOTA, min(millicores, 2**31) * period // 1000)
    return {name: value for name, value in given.items() if value}
