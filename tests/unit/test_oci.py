# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime's command line, with programs that stand for a runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from criagent.base.errors import WrongStateError
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.oci.runtime import OciRuntime, Runtimes, SealedProgram


def test_a_handler_that_is_configured_no_more_is_named() -> None:
    runtimes = Runtimes()
    with pytest.raises(WrongStateError, match=r"runtime\.handlers\.kata") as caught:
        runtimes["kata"]
    assert '"kata"' in str(caught.value)
    assert runtimes.get("kata") is None


async def test_limits_of_any_length_reach_the_runtime(tmp_path: Path) -> None:
    """More than a pipe takes, which nobody reads before the program runs."""
    program, taken = tmp_path / "crun", tmp_path / "taken"
    program.write_text(f"#!/bin/sh\ncat > {taken}\n")
    program.chmod(0o755)
    runtime = OciRuntime(
        name="crun",
        program=SealedProgram(program),
        type="crun",
        root=tmp_path,
        driver=CgroupDriver.CGROUPFS,
    )
    limits = {"unified": {f"memory.a{number}": "1" * 4096 for number in range(256)}}
    try:
        await runtime.update("c", limits)
    finally:
        runtime.program.close()
    assert json.loads(taken.read_text()) == limits
