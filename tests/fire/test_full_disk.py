# SPDX-License-Identifier: Apache-2.0
"""No byte free below the root or the run directory at every verb: the reason, and nothing lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fire.verbs import VERBS, Code, Outcome, lists, outcome
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.node_state import agent_pid
from tests.support.pods import Pods

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

PLACES = {"root": Path("/mnt/full-root"), "run": Path("/mnt/full-run")}
# These free what a full node needs back.
_ALWAYS = {"StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox", "RemoveImage"}


@pytest.fixture(scope="module")
def small() -> Iterator[Cri]:
    """An agent whose root and run directories are file systems of their own, with one image."""
    agent.stop()
    for place in PLACES.values():
        place.mkdir()
        options = "size=64m,mode=711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "full", place], check=True)
    root, run = PLACES.values()
    cri = agent.start(f'[storage]\nroot = "{root}"\nrun_dir = "{run}"\n')
    cri.pull(BUSYBOX)
    yield cri
    for sandbox in cri.pods():
        cri.remove_pod(sandbox.id)
    cri.close()
    agent.stop()
    for place in PLACES.values():
        subprocess.run(["umount", "-R", place], check=True)
        place.rmdir()
    agent.start().close()


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """The tests compare what the agent has; the directories end with the module."""


def fill(directory: Path) -> Path:
    """The path of a file that takes the last byte."""
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return path


def facts(cri: Cri) -> list[str]:
    """What the agent answers for all its pods, containers and images."""
    found = [f"{one.id} {one.state}" for one in cri.pods()]
    for one in cri.containers():
        status = cri.status(one.id)
        found.append(f"{one.id} {status.state} {status.exit_code} {status.reason}")
    return sorted(found + [str(image) for image in cri.images()])


def _check_failure(verb: str, found: Outcome, place: Path) -> None:
    assert verb not in _ALWAYS, found
    assert found.code is Code.RESOURCE_EXHAUSTED, found
    assert "space" in found.text, found
    assert str(place) in found.text or "root directory" in found.text, found


def _code_unknown(cri: Cri, verb: str) -> bool:
    """Whether the stopped container's code is said to be unknown: its monitor writes the code to a
    file of the run directory.
    """
    ended = [cri.status(one.id) for one in cri.containers() if one.state == api.CONTAINER_EXITED]
    answers = {(status.exit_code, status.reason) for status in ended}
    return verb == "StopContainer" and answers == {(255, "Unknown")}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_on_a_full_disk(verb: str, place: str, small: Cri, tmp_path: Path) -> None:
    pods = Pods(small, tmp_path, f"{verb.partition(' ')[0].lower()}-{place}")
    pid = agent_pid()
    bystander_pod = pods.sandbox()
    bystander = pods.running(pod=bystander_pod)
    call = VERBS[verb](pods)
    filler = fill(PLACES[place])
    try:
        found = outcome(call.make)
        for look in lists(small, bystander, bystander_pod[0]):
            look()
        if found.code is Code.OK:
            assert call.holds() or _code_unknown(small, verb), found
        else:
            _check_failure(verb, found, PLACES[place])
        answered = facts(small)
        assert agent_pid() == pid
        assert agent.running()
    finally:
        filler.unlink()
    root, run = PLACES.values()
    agent.kill()
    agent.start(f'[storage]\nroot = "{root}"\nrun_dir = "{run}"\n').close()
    assert facts(small) == answered, found
    if found.code is not Code.OK:
        call.make()
    assert call.holds() or _code_unknown(small, verb)
    for sandbox in small.pods():
        small.remove_pod(sandbox.id)
    assert small.containers() == []
