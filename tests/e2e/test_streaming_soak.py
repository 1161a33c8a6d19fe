# SPDX-License-Identifier: Apache-2.0
"""Thousands of exec and attach sessions, many of them broken off: the agent stays as it was.

CRIAGENT_SOAK multiplies the sessions; CRIAGENT_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import select
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.cri_client import api
from tests.support.node_state import agent_facts
from tests.support.pods import Pods
from tests.support.stream_client import V4, Command, WebSocket
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

TIMES = float(os.environ.get("CRIAGENT_SOAK", "1"))
EXECS, ABORTED, ATTACHES = int(2000 * TIMES), int(500 * TIMES), int(200 * TIMES)
WIDE = 8


def test_sessions_without_number_leave_nothing(pods: Pods) -> None:
    seed = int(os.environ.get("CRIAGENT_SEED", str(random.randrange(1 << 32))))
    print(f"CRIAGENT_SEED={seed}")
    dice = random.Random(seed)

    def stdin(config: api.ContainerConfig) -> None:
        config.stdin = True

    container_id = pods.running("sh", "-c", "while read x; do echo got $x; done", change=stdin)
    plan = ["exec"] * (EXECS - ABORTED) + ["abort"] * ABORTED + ["attach"] * ATTACHES
    dice.shuffle(plan)
    warm = [(kind, dice.random()) for kind in ("exec", "abort", "attach") * 40]
    jobs = [(kind, dice.random()) for kind in plan]
    with ThreadPoolExecutor(WIDE) as threads:
        list(threads.map(lambda job: _session(pods, container_id, *job), warm))
        until(lambda: _leftovers(container_id) == [], "nothing left of the first sessions")
        before = agent_facts()
        list(threads.map(lambda job: _session(pods, container_id, *job), jobs))
    until(lambda: _leftovers(container_id) == [], "nothing left of the sessions")
    until(lambda: agent_facts()["fds"] <= before["fds"] + 2, "descriptors closed")
    after = agent_facts()
    print(before, after)
    assert after["threads"] <= before["threads"] + 4
    # The heap's holes go back to the kernel within ten seconds.
    limit = before["rss_kb"] + 8_000 * max(TIMES**0.5, 1)
    until(lambda: agent_facts()["rss_kb"] < limit, "the memory's return")
    lines = pods.cri.exec(container_id, "ps", "-o", "args").stdout.split(b"\n")[1:-1]
    lines = [line for line in lines if not line.startswith(b"[")]  # zombies are the container's
    assert sorted(lines) == [b"ps -o args", b"sh -c while read x; do echo got $x; done"]


def _session(pods: Pods, container_id: str, kind: str, chance: float) -> None:
    if kind == "attach":
        _attach(pods, container_id, chance)
        return
    cmd = ["echo", "hello"] if kind == "exec" else ["sh", "-c", "sleep 9191 & yes"]
    request = api.ExecRequest(container_id=container_id, cmd=cmd, stdin=True, stdout=True)
    url = pods.cri.runtime.Exec(request, timeout=30).url
    if kind == "exec" and chance < 0.5:
        with Command(url, "stdin", "stdout") as command:
            assert command.result()[0] == b"hello\n"
    elif kind == "exec":
        with WebSocket(url, V4) as client:
            assert client.channels()[1] == b"hello\n"
    else:
        _abort(url, chance)


def _abort(url: str, chance: float) -> None:
    """Leave at a moment that `chance` chooses: before the streams are open, or up to 60 ms on."""
    if chance < 0.1:
        Command(url).socket.close()  # opens the error stream alone
        return
    client = Command(url, "stdin", "stdout") if chance < 0.55 else WebSocket(url, V4)
    select.select([], [], [], chance * 0.06)
    client.socket.close()


def _attach(pods: Pods, container_id: str, chance: float) -> None:
    feeding = chance < 0.5
    request = api.AttachRequest(container_id=container_id, stdin=feeding, stdout=True)
    url = pods.cri.runtime.Attach(request, timeout=30).url
    if chance < 0.25 or chance > 0.75:
        with WebSocket(url, V4) as client:
            client.message()
            if feeding:
                client.send(b"\x00x\n")
                while (message := client.message()) is not None and b"got x" not in message:
                    pass
        return
    with Command(url, *(("stdin", "stdout") if feeding else ("stdout",))) as command:
        if feeding:
            command.send(command.streams["stdin"], b"x\n")
            while (frame := command.frame()) is not None and b"got x" not in frame.payload:
                pass


def _leftovers(container_id: str) -> list[str]:
    tops = (Path("/sys/fs/cgroup"), Path("/run/criagent/containers") / container_id)
    return [str(path) for top in tops for path in top.rglob("exec-*")]
