# SPDX-License-Identifier: Apache-2.0
"""No free descriptor at any moment of a verb: none, one, two, up to as many as it needs."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fire.verbs import NODE_FAULTS, OTHER, VERBS, Code, outcome
from tests.support.node_state import agent_pid, differences, settled_state
from tests.support.pods import Pods

pytestmark = pytest.mark.root

_MOST = 200  # that a verb may need at once


@contextlib.contextmanager
def free_descriptors(number: int) -> Iterator[None]:
    """The agent can open so many more descriptors at once."""
    pid = agent_pid()
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = [at for at in range(max(taken) + number + 2) if at not in taken]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[number], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_without_a_descriptor_fails_with_the_reason_and_works_afterwards(
    verb: str, pods: Pods
) -> None:
    pid = agent_pid()
    before = settled_state(pods.cri)
    failed = 0
    for number in range(_MOST):
        call = VERBS[verb](pods)
        with free_descriptors(number):
            found = outcome(call.make)
        if found.code is not Code.OK:
            failed += 1
            assert found.code in NODE_FAULTS, f"{number} free: {found}"
            assert "Too many open files" in found.text, f"{number} free: {found}"
            call.make()
        assert call.holds(), f"{number} free: {found}"
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        if found.code is Code.OK and number > 1:
            break
    print(f"{verb}: failed with 0 to {failed - 1} free descriptors")
    assert agent_pid() == pid
    assert Path(f"/proc/{pid}").exists()
    if verb == "PullImage":
        pods.cri.remove_image(OTHER)
    assert differences(before, settled_state(pods.cri)) == ""
