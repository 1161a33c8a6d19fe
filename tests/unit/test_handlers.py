# SPDX-License-Identifier: Apache-2.0
"""Handlers: what their programs answer at start, and which of them may do what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import InvalidRequestError, UnsupportedError, WrongStateError
from criagent.model.container import ContainerMetadata, ContainerSpec
from criagent.model.sandbox import SandboxMetadata, SandboxSpec
from criagent.runtime.node.annotations import PassedAnnotations
from criagent.runtime.node.handlers import HandlerFacts, Handlers, monitor_problem, probe


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


async def test_a_monitor_that_is_another_program_is_refused(program: Path) -> None:
    write(program, "echo crun version 1.21")
    assert await monitor_problem(program) == (
        f'{program} is not conmon: its --version says "crun version 1.21"; '
        "set the path of conmon, runtime.conmon, and restart criagent"
    )


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


@pytest.mark.parametrize(
    ("kind", "answer", "problem"),
    [
        ("crun", "runc version 1.3.6", 'is runc, and not of the type crun; set type = "runc"'),
        ("runc", "crun version 1.28", 'set type = "crun"'),
        ("runc", "runsc version release-20260905.0", 'set type = "runsc"'),
        ("wasm", "crun version 1.28\n+SYSTEMD +YAJL", "without WebAssembly"),
        ("runsc", "runsc version release-20240729.0", "is too old: update came with 20260511.0.0"),
        ("wasm", "crun version 1.28\n+SYSTEMD +WASM:wasmedge", ""),
        ("runsc", "runsc version release-20260905.0", ""),
        ("runc", "youki version 0.5.5", ""),
        ("crun", "true (GNU coreutils) 9.7", 'its --version says "true (GNU coreutils) 9.7"; set'),
        ("crun", "youki version 0.5.5", "is not crun"),
        ("runc", "GNU bash, version 5.2.37(1)-release", "is not runc"),
        ("runsc", "", 'is not runsc: its --version says ""'),
        ("wasm", "BusyBox v1.37.0 (Debian)", "is not crun"),
    ],
)
async def test_a_program_is_of_its_type(
    program: Path, kind: str, answer: str, problem: str
) -> None:
    write(program, f"echo '{answer}'")
    found = await probe("mine", program, kind)
    assert problem in found.problem
    assert bool(found.problem) == bool(problem)
    if not problem:
        assert found.version in {"1.28", "20260905.0", "0.5.5"}


def test_only_listed_annotations_are_passed_on() -> None:
    listed = PassedAnnotations(
        of_pod=("io.example/*", "org.x.?", "run.oci.handler"),
        of_container=("io.example/both",),
        own={"own": "agent"},
    )
    of_pod = {
        "io.example/a": "1",
        "io.example/a/b": "2",
        "io.example": "3",
        "org.x.1": "4",
        "org.x.12": "5",
        "run.oci.handler": "6",
        "io.example/both": "pod",
        "own": "pod",
    }
    pod = SandboxSpec(
        metadata=SandboxMetadata(name="p", uid="u", namespace="n"), annotations=of_pod
    )
    spec = ContainerSpec(
        metadata=ContainerMetadata(name="c"),
        image="i",
        annotations={"io.example/both": "container", "io.example/c": "7"},
    )
    assert listed.of(pod, spec) == {
        "io.example/a": "1",
        "org.x.1": "4",
        "run.oci.handler": "6",
        "io.example/both": "container",
        "own": "agent",
    }
    assert PassedAnnotations().of(pod, spec) == {}


def test_no_wildcard_reaches_what_acts_as_root() -> None:
    """Though the configuration refuses such patterns, too."""
    evil = {"run.oci.hooks.stdout": "/x", "org.systemd.property.Exec": "y"}
    pod = SandboxSpec(metadata=SandboxMetadata(name="p", uid="u", namespace="n"), annotations=evil)
    spec = ContainerSpec(metadata=ContainerMetadata(name="c"), image="i")
    assert PassedAnnotations(of_pod=("*", "run.oci.*", "?rg.*")).of(pod, spec) == {}


# Which handler may do what


def facts(name: str, program: Path, **fields: Any) -> HandlerFacts:
    return HandlerFacts(name=name, path=program, **{"userns_problem": "", **fields})


def handlers(program: Path, *others: HandlerFacts, monitor_problem: str = "") -> Handlers:
    """crun, which is the default, and others."""
    write(program, "exit 0")
    found = [facts("crun", program), *others]
    return Handlers(found, default="crun", monitor=program, monitor_problem=monitor_problem)


def test_a_pod_gets_the_handler_that_it_names_or_the_default_one(program: Path) -> None:
    known = handlers(program, facts("runc", program))
    assert known.resolve("").name == known.of_pod("").name == known.default == "crun"
    assert known.resolve("runc").name == known.of_pod("runc").name == "runc"


def test_an_unknown_handler_is_refused_with_those_that_can_be_used(program: Path) -> None:
    known = handlers(program, facts("runc", program), facts("old", program, problem="too old"))
    with pytest.raises(InvalidRequestError) as caught:
        known.resolve("kata")
    text = "runtime handler \"kata\" is not configured; known are ['crun', 'runc']"
    assert str(caught.value) == text
    assert [one.name for one in known.usable] == ["crun", "runc"]
    assert list(known.by_name) == ["crun", "runc", "old"]


def test_a_pod_whose_handler_left_the_configuration_gets_no_containers(program: Path) -> None:
    with pytest.raises(WrongStateError, match=r"set runtime\.handlers\.kata again"):
        handlers(program).of_pod("kata")


def test_a_handler_that_could_not_be_used_at_the_start_refuses_its_pods_alone(
    program: Path,
) -> None:
    known = handlers(program, facts("runc", program, problem="runc is too old"))
    for call in (known.resolve, known.of_pod):
        with pytest.raises(WrongStateError, match="cannot run containers: runc is too old"):
            call("runc")
        call("crun")
    assert known.problem == ""


def test_without_its_monitor_no_handler_runs_anything(program: Path) -> None:
    known = handlers(program, facts("runc", program), monitor_problem="conmon is too old")
    assert known.problem == known.monitor_problem == "conmon is too old"
    for name in ("", "runc", "kata"):  # also one that is not configured
        with pytest.raises(WrongStateError, match="conmon is too old"):
            known.resolve(name)


def test_a_program_that_went_after_the_start_is_noticed(program: Path) -> None:
    known = handlers(program)
    program.chmod(0o644)
    text = f"{program} can no longer be executed; install it again"
    assert known.problem == f"{text}; {text}"  # the handler's, and conmon's
    with pytest.raises(WrongStateError, match="install it again"):
        known.resolve("")
    program.chmod(0o755)
    assert known.resolve("").name == "crun"


def test_an_image_may_name_only_a_configured_handler(program: Path) -> None:
    known = handlers(program, facts("old", program, problem="too old"))
    known.check_image("")
    known.check_image("old")
    with pytest.raises(InvalidRequestError, match="'kata' is not configured; handlers: crun, old"):
        known.check_image("kata")


def test_what_a_handler_cannot_do_is_refused_with_its_name_and_reason(program: Path) -> None:
    crun = facts("crun", program, recursive_read_only=True)
    crun.require_user_namespaces()
    crun.require_recursive_read_only("/data")
    runc = facts("runc", program, userns_problem="no idmapped mounts")
    with pytest.raises(UnsupportedError, match=r'"runc" cannot run .*: no idmapped mounts'):
        runc.require_user_namespaces()
    with pytest.raises(UnsupportedError, match=r'RROUnsupported: mount /data: .*"runc"'):
        runc.require_recursive_read_only("/data")
