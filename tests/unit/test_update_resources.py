# SPDX-License-Identifier: Apache-2.0
"""New limits: what is not given stays as the container has it, in the kernel and in the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from criagent.base.aio import KeyedLocks
from criagent.model.common import Resources
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.nri.door import NoPlugins
from criagent.runtime.oci.runtime import OciRuntime, SealedProgram
from criagent.runtime.verbs.describe import in_force
from criagent.runtime.verbs.update_container import ResourceUpdater
from criagent.store.containers import ContainerStore
from criagent.store.db import Database
from criagent.store.sandboxes import SandboxStore

ID = ContainerId("a" * 64)
BOX = Sandbox(
    id=SandboxId("b" * 64),
    spec=SandboxSpec(metadata=SandboxMetadata(name="pod", uid="u", namespace="n")),
    created_at_ns=1,
    boot_id="boot",
)


NODE = NodeFacts(capabilities=frozenset(), controllers=frozenset({"cpu", "memory"}), swap=True)


def memory(limit: int, total: int = 0, **fields: Any) -> Resources:
    return Resources(
        memory_limit_in_bytes=limit,
        memory_swap_limit_in_bytes=total,
        unified={f"memory.{key}.max": value for key, value in fields.items()},
    )


def container(resources: Resources, asked: Resources | None = None) -> Container:
    return Container(
        id=ID,
        sandbox_id=BOX.id,
        spec=ContainerSpec(
            metadata=ContainerMetadata(name="c"), image="i", resources=asked or Resources()
        ),
        created_at_ns=1,
        boot_id="boot",
        handler="crun",
        resources=resources,
        ready_at_ns=2,
        started_at_ns=3,
    )


def updater_of(store: ContainerStore, runtimes: dict[str, OciRuntime]) -> ResourceUpdater:
    return ResourceUpdater(
        store=store,
        transitions=Transitions(store=store, locks=KeyedLocks()),
        runtimes=runtimes,
        node=NODE,
        plugins=NoPlugins(),
    )


async def updated(
    top: Path, old: Resources, new: Resources
) -> tuple[dict[str, Any], Resources | None]:
    """What the runtime is told, and what is in the row afterwards."""
    program, taken = top / "crun", top / "taken"
    program.write_text(f"#!/bin/sh\ncat > {taken}\n")
    program.chmod(0o755)
    runtime = OciRuntime(
        name="crun",
        program=SealedProgram(program),
        type="crun",
        root=top,
        driver=CgroupDriver.CGROUPFS,
    )
    db = Database.open(top / "state.db")
    store = ContainerStore(db)
    row = container(old)
    updater = updater_of(store, {"crun": runtime})
    try:
        await SandboxStore(db).insert(BOX)
        await store.insert(row)
        await updater.update(ID, new)
        return json.loads(taken.read_text()), store.resolve(ID).resources
    finally:
        db.close()
        runtime.program.close()


@pytest.mark.parametrize(
    ("old", "new", "told", "in_force"),
    [
        # 50 of swap, and afterwards still.
        (memory(100, 150), memory(300), {"limit": 300, "swap": 350}, memory(300, 350)),
        (memory(100, 150), memory(80), {"limit": 80, "swap": 130}, memory(80, 130)),
        (memory(100, -1), memory(300), {"limit": 300, "swap": -1}, memory(300, -1)),
        # None, and afterwards still.
        (memory(100), memory(300), {"limit": 300, "swap": 300}, memory(300)),
        (memory(100, 100), memory(300), {"limit": 300, "swap": 300}, memory(300, 300)),
        # As much as there is, and afterwards still.
        (memory(0), memory(300), {"limit": 300, "swap": -1}, memory(300, -1)),
        (memory(-1), memory(300), {"limit": 300, "swap": -1}, memory(300, -1)),
        # To the runtimes no limit of memory means none of both.
        (memory(100, 150), memory(-1), {"limit": -1, "swap": -1}, memory(-1, -1)),
        # Swap alone: the limit of memory stays.
        (memory(100), memory(0, 150), {"limit": 100, "swap": 150}, memory(100, 150)),
        (memory(100, 150), memory(300, 400), {"limit": 300, "swap": 400}, memory(300, 400)),
    ],
)
async def test_swap_stays_what_it_was_unless_it_is_given(
    tmp_path: Path, old: Resources, new: Resources, told: dict[str, int], in_force: Resources
) -> None:
    assert await updated(tmp_path, old, new) == ({"memory": told}, in_force)


async def test_swap_that_was_given_by_its_file_stays(tmp_path: Path) -> None:
    told, written = await updated(tmp_path, memory(100, swap="7"), memory(300))
    assert told == {"memory": {"limit": 300}, "unified": {"memory.swap.max": "7"}}
    assert written == memory(300, swap="7")


async def test_a_total_takes_the_place_of_the_file(tmp_path: Path) -> None:
    _, written = await updated(tmp_path, memory(100, swap="7"), memory(300, 400))
    assert written == memory(300, 400)


async def test_without_memory_nothing_is_said_of_it(tmp_path: Path) -> None:
    told, written = await updated(tmp_path, memory(100, 150), Resources(cpu_shares=512))
    assert told == {"cpu": {"shares": 512}}
    assert written == Resources(
        cpu_shares=512, memory_limit_in_bytes=100, memory_swap_limit_in_bytes=150
    )


def test_the_specification_that_is_shown_has_the_limits_in_force() -> None:
    limits = {"memory": {"limit": 100}, "devices": [{"allow": False}], "cpu": {"shares": 2}}
    spec = {"root": {}, "linux": {"resources": limits, "cgroupsPath": "/x"}}
    asked = memory(100)
    assert in_force(NODE, container(asked, asked), spec) is spec
    now = Resources(memory_limit_in_bytes=300, cpu_shares=512, cpuset_cpus="0")
    shown = in_force(NODE, container(now, asked), spec)
    assert shown["linux"] == {
        "cgroupsPath": "/x",
        "resources": {
            "memory": {"limit": 300, "swap": 300},
            "devices": [{"allow": False}],
            "cpu": {"shares": 512},  # the node has no cpuset
        },
    }
    assert spec["linux"]["resources"] is limits
