"""What is asked of the runtimes' programs at start, with scripts that stand for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from criagent.runtime.node.handlers import monitor_problem, probe


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "program"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


async def test_version_and_features_are_read(program: Path) -> None:
    features = '{"mountOptions": ["rro"], "linux": {"namespaces": ["user"], "netDevices": {}}}'
    write(program, f"case $1 in --version) echo crun version 1.21;; *) echo '{features}';; esac")
    facts = await probe("crun", program, "crun")
    assert (facts.problem, facts.version, facts.userns_problem) == ("", "1.21", "")
    assert facts.user_namespaces
    assert not facts.net_devices


async def test_a_program_without_features_has_none_of_them(program: Path) -> None:
    write(program, 'case $1 in --version) echo "crun version 1.21";; *) exit 1;; esac')
    facts = await probe("crun", program, "crun")
    assert facts.problem == ""
    assert not facts.user_namespaces


async def test_an_answer_counts_though_a_child_of_the_program_stays(program: Path) -> None:
    write(program, "echo conmon version 2.1.12; sleep 1 & exit 0")
    assert await monitor_problem(program) == ""


async def test_a_program_that_is_absent_is_named_with_its_cure(program: Path) -> None:
    cure = "cannot be run: No such file or directory; install {} and restart criagent"
    facts = await probe("crun", program, "crun")
    assert facts.problem == f"{program} {cure.format('crun')}"
    assert await monitor_problem(program) == f"{program} {cure.format('conmon')}"


async def test_a_program_that_hangs_is_said_to_hang(program: Path) -> None:
    write(program, "exec sleep 1000")
    facts = await probe("crun", program, "crun", limit_s=0.1)
    problem = f"{program} --version does not end; install another build and restart criagent"
    assert facts.problem == problem
    assert await monitor_problem(program, limit_s=0.1) == problem
