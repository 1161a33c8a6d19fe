# SPDX-License-Identifier: Apache-2.0
"""CNI plug-ins that hang, flood, leave daemons behind or answer nonsense."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from criagent.base.errors import AgentError, InvalidRequestError, TimedOutError
from criagent.model.sandbox import (
    SandboxMetadata,
)
from tests.support.cni_node import NETNS, RESULT, Group, Node, attached, sandbox


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    made.executor.shutdown()
    made.database.close()


@pytest.mark.parametrize("text", ["a;K8S_POD_NAME=b", "a=b", "a\0b", "a\nb"])
async def test_metadata_that_would_break_cni_args_is_refused(node: Node, text: str) -> None:
    node.plugin("first")
    node.configure({"type": "first"})
    network = node.network()
    container = sandbox(metadata=SandboxMetadata(name=text, uid="u", namespace="n"))
    with pytest.raises(InvalidRequestError, match="K8S_POD_NAME"):
        await network.attach(container, NETNS)
    await network.detach(container, NETNS)
    assert "K8S_POD_NAME=" not in node.environment("DEL-first")["CNI_ARGS"]


async def test_a_plugin_that_hangs_is_killed_with_its_group(node: Node, tmp_path: Path) -> None:
    group = Group(tmp_path / "held")
    node.plugin("first")
    node.plugin("second", add=group.hang)
    node.configure({"type": "first"}, {"type": "second"})
    network = node.network(timeout_s=3)
    with pytest.raises(TimedOutError, match=r'"second" did not end within 3 s and was killed'):
        await network.attach(sandbox(), NETNS)
    group.await_death()
    await network.detach(sandbox(), NETNS)
    assert node.order[2:] == ["DEL second", "DEL first"]


async def test_a_cancelled_call_leaves_no_process(node: Node, tmp_path: Path) -> None:
    group = Group(tmp_path / "held")
    started = tmp_path / "started"
    os.mkfifo(started)
    node.plugin("first", add=f"echo > {started}; {group.hang}")
    node.configure({"type": "first"})
    task = asyncio.create_task(node.network().attach(sandbox(), NETNS))
    await asyncio.to_thread(started.read_bytes)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    group.await_death()


async def test_a_plugin_that_reads_nothing_is_still_limited(node: Node) -> None:
    program = node.bin / "deaf"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    node.configure({"type": "deaf", "pad": "x" * 500_000})
    with pytest.raises(TimedOutError):
        await node.network(timeout_s=0.2).attach(sandbox(), NETNS)


async def test_a_daemon_that_a_plugin_leaves_behind_is_not_waited_for(node: Node) -> None:
    node.plugin("first", add=f"sleep 1000 & echo $! > {node.log}/pid; echo '{RESULT}'")
    node.configure({"type": "first"})
    container = await attached(node.network(), sandbox())
    os.kill(int((node.log / "pid").read_text()), 9)
    assert container.addresses == ("10.1.0.2",)


async def test_a_hundred_megabytes_of_output_are_refused_and_not_kept(node: Node) -> None:
    def peak_kib() -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0])

    node.plugin("first", add="head -c 100000000 /dev/zero")
    node.configure({"type": "first"})
    before = peak_kib()
    with pytest.raises(AgentError, match='CNI plugin "first" printed more than 1048576 bytes'):
        await node.network().attach(sandbox(), NETNS)
    assert peak_kib() - before < 20_000


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (":", "printed invalid JSON"),
        ("echo '[]'", "something other than a JSON object"),
        ("echo '{}'", "has no ips"),
        ('echo \'{"ips":[{"address":"10.1.0.999/16"}]}\'', r"malformed address '10\.1\.0\.999/16'"),
        ('echo \'{"code":11,"msg":"no","details":"ip"}\'; exit 1', "ADD: no ip"),
        ("echo words >&2; exit 7", "ADD: words"),
        ("kill -9 $$", "ADD: failed with no output"),
    ],
)
async def test_a_bad_answer_is_told_by_the_plugins_name(node: Node, add: str, words: str) -> None:
    node.plugin("first", add=add)
    node.configure({"type": "first"})
    with pytest.raises(AgentError, match=f'CNI plugin "first".*{words}'):
        await node.network().attach(sandbox(), NETNS)


@pytest.mark.parametrize(("content", "mode"), [("#!/nowhere", 0o755), ("", 0o755), ("x", 0o644)])
async def test_a_plugin_that_is_no_program_is_told(node: Node, content: str, mode: int) -> None:
    (node.bin / "first").write_text(content)
    (node.bin / "first").chmod(mode)
    node.configure({"type": "first"})
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AgentError, match="first cannot be executed"):
        await node.network().attach(sandbox(), NETNS)
    assert len(os.listdir("/proc/self/fd")) == before
