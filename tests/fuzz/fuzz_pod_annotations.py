# SPDX-License-Identifier: Apache-2.0
"""Annotations that the agent obeys: InvalidRequestError, else values within their limits."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from criagent.base.errors import InvalidRequestError
from criagent.config.defaults.pod_annotations import DEVICES
from criagent.config.defaults.workloads import Workload, resource_problem
from criagent.model.common import Resources
from criagent.model.container import ContainerMetadata, ContainerSpec
from criagent.model.sandbox import SandboxMetadata, SandboxSpec
from criagent.runtime.node.defaults import ContainerDefaults
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.node.workloads import Workloads
from criagent.runtime.spec.devices import with_default_devices
from criagent.runtime.spec.layer_limits import quantity
from tests.fuzz.frame import mutate_json, words_of

RESOURCES = {
    "cpushares": 512,
    "cpuquota": 2000,
    "cpuperiod": 100000,
    "cpuset": "0-1",
    "cpulimit": 5,
}
SEEDS = [json.dumps(RESOURCES).encode(), b"/dev/fuse:/dev/mine:rw,/dev/zero", b"256Mi"]
_WORKLOADS = Workloads({"w": Workload(activation_annotation="on", annotation_prefix="r")})
_HANDLER = HandlerFacts(name="h", path=Path("/h"), allowed_annotations=frozenset(DEVICES))
_DEFAULTS = ContainerDefaults(allowed_devices=frozenset({"/dev/fuse", "/dev/zero"}))
_SPEC = ContainerSpec(metadata=ContainerMetadata(name="c"), image="i")


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return mutate_json(rnd, rnd.choice([*SEEDS, *seeds]), words_of(RESOURCES))


def check(data: bytes) -> None:
    text = data.decode(errors="replace")
    for look in (_resources, _devices, _size):
        try:
            look(text)
        except InvalidRequestError as exc:
            assert len(str(exc)) < 5000


def _pod(name: str, text: str) -> SandboxSpec:
    metadata = SandboxMetadata(name="a", namespace="b", uid="c", attempt=0)
    return SandboxSpec(metadata=metadata, annotations={"on": "", name: text})


def _resources(text: str) -> None:
    found = _WORKLOADS.resources(_pod("r/c", text), "c", Resources())
    for name in ("cpu_shares", "cpu_quota", "cpu_period", "cpuset_cpus"):
        assert resource_problem(name, getattr(found, name)) == "", found


def _devices(text: str) -> None:
    for device in with_default_devices(_SPEC, _pod(DEVICES[0], text), _DEFAULTS, _HANDLER).devices:
        assert device.host_path in _DEFAULTS.allowed_devices
        assert device.container_path.startswith("/dev/")
        assert ".." not in device.container_path.split("/")
        assert set(device.permissions) <= set("rwm")


def _size(text: str) -> None:
    assert 0 < quantity("a", text) < 2**63
