# SPDX-License-Identifier: Apache-2.0
"""The CNI network, without an agent, against Debian's plugins: what each verb does to the node."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from criagent.kernel.namespaces import in_thread, pin_namespaces, unpin
from criagent.model.common import Protocol
from criagent.model.sandbox import PortMapping, Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.net.cni.network import CniConfig, CniNetwork
from criagent.store.db import Database
from criagent.store.settings import SettingStore

pytestmark = pytest.mark.root
PLUGINS = Path("/usr/lib/cni")
LEASES = Path("/var/lib/cni/networks/test")


def conflist(*more: dict[str, Any], version: str = "1.0.0") -> str:
    ranges = [[{"subnet": "10.66.0.0/24"}], [{"subnet": "fd00:10:99::/64"}]]
    bridge = {
        "type": "bridge",
        "bridge": "cnitest0",
        "isGateway": True,
        "ipMasq": False,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    }
    return json.dumps({"name": "test", "cniVersion": version, "plugins": [bridge, *more]})


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A configuration directory; bridge and leases of its network are gone afterwards."""
    made = tmp_path / "net.d"
    made.mkdir()
    assert not Path("/var/lib/cni").exists()
    yield made
    subprocess.run(["ip", "link", "del", "cnitest0"], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "/var/lib/cni"], check=True)


@pytest.fixture
def netns(tmp_path: Path) -> Iterator[Path]:
    """A pinned network namespace."""
    pin = tmp_path / "net"
    in_thread(partial(pin_namespaces, {"net": pin}, sysctls={}, hostname=None))
    yield pin
    unpin(pin)


def sandbox(*mappings: PortMapping) -> Sandbox:
    metadata = SandboxMetadata(name="web", uid="u", namespace="prod")
    return Sandbox(
        id=SandboxId("d" * 64),
        spec=SandboxSpec(metadata=metadata, port_mappings=mappings),
        created_at_ns=1,
        boot_id="b",
        network_backend="cni",
    )


def with_network(
    directory: Path, use: Callable[[CniNetwork], Coroutine[object, object, None]]
) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(2) as executor:
            config = CniConfig(
                conf_dir=directory,
                bin_dirs=(PLUGINS,),
                timeout_s=30,
                cache_dir=directory.parent / "kept",
            )
            database = Database.open(directory.parent / "state.db")
            network = CniNetwork(config, executor, SettingStore(database))
            await network.start()
            await use(network)
            await network.stop()
            database.close()

    asyncio.run(run())


def leases() -> list[str]:
    return sorted(path.name for path in LEASES.iterdir() if path.name[0] in "1f")


def inside(netns: Path, *command: str) -> str:
    return subprocess.check_output(["nsenter", f"--net={netns}", *command], text=True)


@pytest.mark.parametrize("version", ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"])
def test_bridge_and_host_local_connect_and_let_go(
    directory: Path, netns: Path, version: str
) -> None:
    (directory / "10-test.conflist").write_text(conflist(version=version))

    async def use(network: CniNetwork) -> None:
        found = await network.attach(sandbox(), netns)
        assert found.addresses == ("10.66.0.2", "fd00:10:99::2")
        shown = inside(netns, "ip", "addr", "show", "eth0")
        assert "10.66.0.2/24" in shown
        assert "fd00:10:99::2/64" in shown
        assert " 0% packet loss" in inside(netns, "busybox", "ping", "-c1", "-W2", "10.66.0.1")
        container_id = replace(sandbox(), addresses=found.addresses, cni_result=found.cni_result)
        (directory / "10-test.conflist").unlink()
        await network.detach(container_id, netns)
        assert leases() == []
        assert "eth0" not in inside(netns, "ip", "link")
        await network.detach(container_id, netns)  # again is fine

    with_network(directory, use)


def test_the_lease_comes_back_when_the_namespace_is_gone(directory: Path, netns: Path) -> None:
    (directory / "10-test.conflist").write_text(conflist())

    async def use(network: CniNetwork) -> None:
        found = await network.attach(sandbox(), netns)
        assert leases() == ["10.66.0.2", "fd00:10:99::2"]
        unpin(netns)
        container_id = replace(sandbox(), addresses=found.addresses, cni_result=found.cni_result)
        await network.detach(container_id, netns)
        assert leases() == []

    with_network(directory, use)


def test_a_chain_that_breaks_leaves_nothing(directory: Path, netns: Path) -> None:
    broken = {"type": "tuning", "sysctl": {"net.no.such.thing": "1"}}
    (directory / "10-test.conflist").write_text(conflist(broken))

    async def use(network: CniNetwork) -> None:
        with pytest.raises(Exception, match='CNI plugin "tuning" ADD'):
            await network.attach(sandbox(), netns)
        assert leases() == ["10.66.0.2", "fd00:10:99::2"]
        await network.detach(sandbox(), netns)
        assert leases() == []

    with_network(directory, use)
    members = Path("/sys/class/net/cnitest0/brif")
    assert list(members.iterdir()) == []


def test_portmap_gets_the_host_ports(directory: Path, netns: Path) -> None:
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    portmap["backend"] = "nftables"
    (directory / "10-test.conflist").write_text(conflist(portmap))
    mapping = PortMapping(protocol=Protocol.TCP, container_port=80, host_port=7500)

    async def use(network: CniNetwork) -> None:
        found = await network.attach(sandbox(mapping), netns)
        assert "7500" in rules()
        container_id = replace(
            sandbox(mapping), addresses=found.addresses, cni_result=found.cni_result
        )
        await network.detach(container_id, netns)
        assert "7500" not in rules()

    before = tables()
    try:
        with_network(directory, use)
    finally:
        for table in tables() - before:  # portmap keeps its empty table
            subprocess.run(["nft", f"delete {table}"], check=True)


def rules() -> str:
    return subprocess.check_output(["nft", "list", "ruleset"], text=True)


def tables() -> set[str]:
    return set(subprocess.check_output(["nft", "list", "tables"], text=True).splitlines())
