# SPDX-License-Identifier: Apache-2.0
"""Monitors live in the unit that is theirs, with a program that stands for conmon."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog

from criagent.base.errors import WrongStateError
from criagent.kernel import cgroupfs
from criagent.kernel.process import process_ref
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import SandboxId
from criagent.process.child import killed_on_exit
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.conmon import Conmon
from criagent.runtime.oci.runtime import OciRuntime, SealedProgram

UNIT = "/system.slice/criagent-monitors.service"
ROW = Container(
    id=ContainerId("a" * 64),
    sandbox_id=SandboxId("b" * 64),
    spec=ContainerSpec(metadata=ContainerMetadata(name="c"), image="i"),
    created_at_ns=1,
    boot_id="boot",
    handler="crun",
    cgroup=f"/cri/{'a' * 64}",
)
# It says that it is the container itself, and stays.
PROGRAM = """#!/bin/sh
echo "{\\"pid\\": $$}" > /proc/self/fd/$_OCI_SYNCPIPE
exec sleep 100000
"""


async def created(top: Path) -> int:
    """The pid of a monitor that was started and has ended."""
    paths = RuntimePaths(root=top / "root", run_dir=top / "run")
    paths.prepare()
    paths.container(ROW.id).mkdir()
    program = top / "conmon"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    runtime = OciRuntime(
        name="crun",
        program=SealedProgram(program),
        type="crun",
        root=top,
        driver=CgroupDriver.CGROUPFS,
    )
    with ThreadPoolExecutor(1) as fs:
        conmon = Conmon(program=program, paths=paths, limit_s=20, cgroup=f"{UNIT}/monitors", fs=fs)
        try:
            monitored = await conmon.create(ROW, runtime)
        finally:
            runtime.program.close()
    async with killed_on_exit(monitored.child):
        return monitored.monitor.pid


@pytest.fixture(autouse=True)
def placed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer for a container that is where it was asked to be; nobody moved ours."""
    monkeypatch.setattr(cgroupfs, "of_process", lambda _: ROW.cgroup)


async def test_a_container_elsewhere_is_refused_and_its_monitor_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def elsewhere(pid: int) -> str:
        asked.append(pid)
        return f"{ROW.cgroup}x"

    monkeypatch.setattr(cgroupfs, "of_process", elsewhere)
    monkeypatch.setattr(cgroupfs, "ROOT", tmp_path / "cgroup")
    with pytest.raises(WrongStateError, match="honour linux"):
        await created(tmp_path)
    assert process_ref(asked[0]) is None


@pytest.mark.parametrize("there", [True, False])
async def test_a_monitor_moves_also_when_systemd_made_the_unit_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """A unit that is started again while no monitor lives in it has lost its directory."""
    monkeypatch.setattr(cgroupfs, "ROOT", tmp_path / "cgroup")
    cgroupfs.make(f"{UNIT}/monitors" if there else UNIT)
    pid = await created(tmp_path)
    assert (cgroupfs.directory(UNIT) / "monitors/cgroup.procs").read_text() == str(pid)


async def test_no_unit_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroupfs, "ROOT", tmp_path / "cgroup")
    with structlog.testing.capture_logs() as told:
        await created(tmp_path)
    assert "monitor_not_moved" in [line["event"] for line in told]
    assert not cgroupfs.directory(UNIT).exists()
