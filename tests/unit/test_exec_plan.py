# SPDX-License-Identifier: Apache-2.0
"""What is written and executed for one exec, with a script that stands for the OCI runtime."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from criagent.base.errors import InvalidRequestError, WrongStateError
from criagent.config.storage_section import Storage
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.image.snapshots.drivers.overlay import OverlayDriver
from criagent.image.snapshots.snapshots import Snapshots
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import SandboxId
from criagent.process.child import Pipes
from criagent.process.pipe_ends import up_to
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.exec.plan import Console, ExecPlanner, ExecRequest, Size
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import OciRuntime, Runtimes, SealedProgram
from criagent.store.db import Database
from criagent.store.snapshots import SnapshotStore

CONTAINER = Container(
    id=ContainerId("a" * 64),
    sandbox_id=SandboxId("b" * 64),
    spec=ContainerSpec(metadata=ContainerMetadata(name="c"), image="i"),
    created_at_ns=1,
    boot_id="boot",
    handler="crun",
    cgroup="/kubepods/pod1/c",
)
PROCESS = {"args": ["main"], "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 7}}
SIZE = Size(width=80, height=24)


@pytest.fixture
def planner(tmp_path: Path) -> Iterator[ExecPlanner]:
    """Handlers of both kinds over one program, and a container's config.json."""
    paths = RuntimePaths(root=tmp_path / "root", run_dir=tmp_path / "run")
    paths.prepare()
    paths.container(CONTAINER.id).mkdir()
    (paths.container(CONTAINER.id) / "config.json").write_text(json.dumps({"process": PROCESS}))
    program = SealedProgram(tmp_path / "program")
    runtimes = Runtimes(
        {
            name: OciRuntime(
                name=name, program=program, type=name, root=tmp_path, driver=CgroupDriver.CGROUPFS
            )
            for name in ("crun", "runc")
        }
    )
    database = Database.open(tmp_path / "db")
    with ThreadPoolExecutor(1) as fs:
        driver = OverlayDriver(tmp_path / "snapshots", Storage(), fs)
        snapshots = Snapshots(driver, SnapshotStore(database), fs)
        files = ContainerFiles(paths=paths, drivers=SnapshotsByHandler(default=snapshots), fs=fs)
        yield ExecPlanner(files=files, paths=paths, runtimes=runtimes)
    program.close()
    database.close()


def left(planner: ExecPlanner) -> list[str]:
    return sorted(file.name for file in planner.paths.container(CONTAINER.id).iterdir())


async def code_of(planner: ExecPlanner, request: ExecRequest, script: str) -> tuple[int, bytes]:
    """Exit code and output of a command, with `script` as the runtime."""
    program = planner.runtimes["crun"].program.path
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with Pipes() as pipes:
        output = pipes.output(up_to(1 << 16))
        async with AsyncExitStack() as stack:
            code = await planner.start(stack, request, pipes).wait()
        return code, output.taken()


def test_a_command_has_the_containers_process_with_its_own_arguments(planner: ExecPlanner) -> None:
    plan = planner.plan(ExecRequest(container=CONTAINER, cmd=["ls", "-l"]))
    assert json.loads(plan.process) == {**PROCESS, "args": ["ls", "-l"], "terminal": False}
    name = plan.process_file.stem
    assert plan.cgroup == f"/kubepods/pod1/c/{name}"
    assert plan.argv[2:] == ["exec", "--cgroup", name, "--process", plan.process_file, CONTAINER.id]
    assert plan.pid_file is None
    assert left(planner) == ["config.json"]


def test_a_terminal_has_its_size_and_a_socket_for_its_master(planner: ExecPlanner) -> None:
    console = Console(socket=Path("/run/c1"), size=SIZE)
    plan = planner.plan(ExecRequest(container=CONTAINER, cmd=["sh"], console=console))
    process = json.loads(plan.process)
    assert process["terminal"] is True
    assert process["consoleSize"] == {"width": 80, "height": 24}
    assert "TERM=xterm" in process["env"]
    assert plan.argv[5:8] == ["--tty", "--console-socket", Path("/run/c1")]


def test_runc_detaches_and_says_the_pid(planner: ExecPlanner) -> None:
    container = dataclasses.replace(CONTAINER, handler="runc")
    plan = planner.plan(ExecRequest(container=container, cmd=["sh"]))
    assert plan.pid_file == plan.process_file.with_suffix(".pid")
    assert plan.argv[5:8] == ["--detach", "--pid-file", plan.pid_file]


@pytest.mark.parametrize(("cgroup", "own"), [("", True), ("/kubepods/pod1/c", False)])
def test_a_command_without_a_cgroup_of_its_own(
    planner: ExecPlanner, cgroup: str, own: bool
) -> None:
    container = dataclasses.replace(CONTAINER, cgroup=cgroup)
    plan = planner.plan(ExecRequest(container=container, cmd=["sh"], own_cgroup=own))
    assert plan.cgroup == ""
    assert "--cgroup" not in plan.argv


def test_what_cannot_be_planned_is_refused(planner: ExecPlanner) -> None:
    with pytest.raises(InvalidRequestError, match="the command is empty"):
        planner.plan(ExecRequest(container=CONTAINER, cmd=[]))
    container = dataclasses.replace(CONTAINER, handler="kata")
    with pytest.raises(WrongStateError, match="kata"):
        planner.plan(ExecRequest(container=container, cmd=["true"]))


PLAIN = ExecRequest(container=CONTAINER, cmd=["x"], own_cgroup=False)


async def test_a_command_runs_to_its_end_and_leaves_no_file(planner: ExecPlanner) -> None:
    script = 'while [ "$1" != --process ]; do shift; done; cat "$2"; exit 3'
    code, output = await code_of(planner, PLAIN, script)
    assert (code, json.loads(output)["args"]) == (3, ["x"])
    assert left(planner) == ["config.json"]


async def test_a_signal_is_128_and_its_number(planner: ExecPlanner) -> None:
    assert (await code_of(planner, PLAIN, "kill -TERM $$"))[0] == 128 + signal.SIGTERM


async def test_a_runtime_that_cannot_be_executed_leaves_no_file(planner: ExecPlanner) -> None:
    with Pipes() as pipes:
        async with AsyncExitStack() as stack:
            with pytest.raises(FileNotFoundError):
                planner.start(stack, PLAIN, pipes)
        assert left(planner) == ["config.json"]
