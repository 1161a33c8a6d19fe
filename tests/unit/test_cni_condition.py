# SPDX-License-Identifier: Apache-2.0
"""The condition of a CNI network, STATUS, GC, and pod CIDRs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import AgentError, InvalidRequestError
from tests.support.cni_node import NETNS, Group, Node, sandbox


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    made.executor.shutdown()
    made.database.close()


async def test_the_condition_follows_directory_and_plugins(node: Node) -> None:
    network = node.network()
    await network.start()

    def not_ready(words: str) -> None:
        condition = network.condition()
        assert (condition.ready, condition.reason) == (False, "NetworkPluginNotReady")
        assert words in condition.message

    not_ready(f"no network configuration in {node.conf}")
    with pytest.raises(AgentError, match="not ready: no network configuration"):
        await network.attach(sandbox(), NETNS)
    (node.conf / "10.conflist").write_text('{"name": ')
    not_ready("10.conflist is not valid JSON")
    node.configure({"type": "first"})
    not_ready(f'CNI plugin "first" is not in {node.bin}; install it')
    node.plugin("first")
    assert network.condition().ready
    (node.conf / "05-old.conf").symlink_to("nowhere")
    not_ready("05-old.conf cannot be read")
    (node.conf / "05-old.conf").unlink()
    assert network.condition().ready
    (node.bin / "first").unlink()
    not_ready('CNI plugin "first"')
    node.plugin("first")
    (node.conf / "10.conflist").unlink()
    not_ready("no network configuration")
    node.conf.rmdir()
    not_ready("no network configuration")
    await network.stop()


async def test_a_change_beside_a_dangling_link_is_seen(node: Node) -> None:
    node.plugin("first")
    node.plugin("second")
    node.configure({"type": "first"})
    (node.conf / "99-gone.conf").symlink_to("nowhere")
    network = node.network()
    assert network.condition().ready
    node.configure({"type": "second"})
    await network.attach(sandbox(), NETNS)
    assert node.order == ["ADD second"]


async def test_status_counts_where_the_version_has_it(node: Node) -> None:
    node.plugin("first", other='echo \'{"code":50,"msg":"no daemon"}\'; exit 1')
    node.configure({"type": "first"}, cniVersion="1.1.0")
    network = node.network()
    await network.start()
    assert network.condition().message == 'cni: CNI plugin "first" STATUS: no daemon'
    assert node.order == ["STATUS first"]  # not at every look
    node.plugin("first")
    node.configure({"type": "first"}, cniVersion="1.1.0")
    assert "has not finished" in network.condition().message
    await network.start()
    assert network.condition().ready


async def test_a_hanging_status_ends_with_the_network(node: Node, tmp_path: Path) -> None:
    group = Group(tmp_path / "held")
    started = tmp_path / "started"
    os.mkfifo(started)
    node.plugin("first", other=f"echo > {started}; {group.hang}")
    node.configure({"type": "first"}, cniVersion="1.1.0")
    network = node.network()
    assert not network.condition().ready
    await asyncio.to_thread(started.read_bytes)
    await network.stop()
    group.await_death()


async def test_gc_names_the_attachments_that_are_wanted(node: Node) -> None:
    node.plugin("first", other="exit 1")  # a complaint stops nothing
    node.plugin("second")
    node.configure({"type": "first"}, {"type": "second"}, cniVersion="1.1.0")
    network = node.network()
    network.condition()
    await network.reconcile([sandbox()])
    assert [line for line in node.order if line.startswith("GC")] == ["GC first", "GC second"]
    wanted = [{"containerID": "c" * 64, "ifname": "eth0"}]
    assert node.request("GC-second")["cni.dev/valid-attachments"] == wanted
    assert "CNI_CONTAINERID" not in node.environment("GC-second")
    await network.stop()


@pytest.mark.parametrize("fields", [{"cniVersion": "1.0.0"}, {"disableGC": True}])
async def test_gc_is_not_called_where_it_is_unknown_or_off(
    node: Node, fields: dict[str, Any]
) -> None:
    node.plugin("first")
    node.configure({"type": "first"}, **{"cniVersion": "1.1.0", **fields})
    network = node.network()
    await network.start()
    await network.reconcile([])
    assert "GC first" not in node.order


async def test_pod_cidrs_are_checked(node: Node) -> None:
    network = node.network()
    await network.set_pod_cidrs(["10.244.1.0/24", "fd00:1::/64"])
    await network.set_pod_cidrs([])
    with pytest.raises(InvalidRequestError, match="pod CIDR 'x' is not a network"):
        await network.set_pod_cidrs(["x"])
