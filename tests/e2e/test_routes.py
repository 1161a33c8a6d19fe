# SPDX-License-Identifier: Apache-2.0
"""Who decides about routes: in pods the agent, on the node whoever did before."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from criagent.kernel.namespaces import in_netns, in_thread, pin_namespaces, unpin
from criagent.net import forwarding
from tests.e2e.test_spoofing import OFF, Pair, inside
from tests.support import agent
from tests.support.mapped import mapped
from tests.support.packets import IP6, Wire, advertisement, ethernet
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root
CONF6 = Path("/proc/sys/net/ipv6/conf")
SWITCHES = ("accept_ra", "accept_redirects", "forwarding")


@pytest.mark.parametrize("userns", [False, True])
def test_pods_take_no_routes_from_neighbours(pods: Pods, userns: bool) -> None:
    sandbox, _ = pods.sandbox(mapped()) if userns else pods.sandbox()
    for conf in ("eth0", "default", "all"):
        for family, keys in {
            "ipv4": ("accept_redirects", "send_redirects", "accept_source_route"),
            "ipv6": ("accept_ra", "accept_redirects", "accept_source_route"),
        }.items():
            for key in keys:
                name = f"/proc/sys/net/{family}/conf/{conf}/{key}"
                assert inside(sandbox, "cat", name) == "0\n", name


@pytest.fixture
def unguarded(pods: Pods) -> Iterator[None]:
    """An agent without anti-spoofing, so that advertisements arrive."""
    agent.stop()
    pods.cri = agent.start(OFF)
    yield
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    agent.stop()
    pods.cri = agent.start()


@pytest.mark.usefixtures("unguarded")
def test_a_router_advertisement_of_a_pod_has_no_effect_on_others(pods: Pods) -> None:
    """CVE-2020-10749. A pod that asks for the opposite by a sysctl gets it."""
    pair = Pair(pods)
    attacker = pair.attacker
    wants = {"net.ipv6.conf.default.accept_ra": "1"}
    willing, _ = pods.sandbox(lambda config: config.linux.sysctls.update(wants))
    packet = advertisement(attacker.link_local, attacker.mac, "2001:db8:bad::")
    frame = ethernet(attacker.mac, IP6, packet, bytes.fromhex("333300000001"))
    assert pair.arrives(frame)
    until(lambda: "proto ra" in routes(willing), "a route")
    assert "proto ra" not in routes(pair.sandboxes[1])
    assert "2001:db8:bad:" not in inside(pair.sandboxes[1], "ip", "-6", "addr")
    assert f"via {attacker.link_local}" not in routes(pair.sandboxes[1])
    assert "via fd00:10:88::1" in routes(pair.sandboxes[1])
    pair.close()


def routes(sandbox: str) -> str:
    return inside(sandbox, "ip", "-6", "route")


class Uplink:
    """A node whose uplink gets its default route from a router, both in namespaces of their own."""

    def __init__(self, directory: Path) -> None:
        self.node, self.router = directory / "node", directory / "router"
        for pin in (self.node, self.router):
            in_thread(partial(pin_namespaces, {"net": pin}, sysctls={}, hostname=None))
        script = f"""
            ip link add uplink type veth peer name eth0 netns {self.router}
            ip link add cri0 type bridge
            ip link add idle type bridge
            for link in uplink cri0 idle; do ip link set $link up; done
        """
        self.at(self.node, "sh", "-ec", script)
        self.at(self.router, "ip", "link", "set", "eth0", "up")
        (link,) = json.loads(self.at(self.router, "ip", "-j", "link", "show", "eth0"))
        self.mac = bytes.fromhex(link["address"].replace(":", ""))

    @staticmethod
    def at(pin: Path, *command: str) -> str:
        return subprocess.check_output(["nsenter", f"--net={pin}", *command], text=True)

    def advertise(self, prefix: str) -> None:
        made = bytes([self.mac[0] ^ 2]) + self.mac[1:3] + b"\xff\xfe" + self.mac[3:]
        source = f"fe80::{made[:2].hex()}:{made[2:4].hex()}:{made[4:6].hex()}:{made[6:].hex()}"
        frame = ethernet(
            self.mac, IP6, advertisement(source, self.mac, prefix), bytes.fromhex("333300000001")
        )
        wire = Wire(self.router)
        wire.send(frame)
        wire.close()

    def switches(self) -> dict[str, str]:
        script = f"cd {CONF6}; grep . */accept_ra */accept_redirects */forwarding"
        lines = self.at(self.node, "sh", "-c", script).splitlines()
        return dict(line.split(":") for line in lines)

    def default_route(self) -> str:
        return self.at(self.node, "ip", "-6", "route", "show", "default")


@pytest.fixture
def uplink(tmp_path: Path) -> Iterator[Uplink]:
    made = Uplink(tmp_path)
    yield made
    unpin(made.node)
    unpin(made.router)


def test_forwarding_leaves_the_nodes_links_what_they_were(uplink: Uplink) -> None:
    """In particular one that has its routes from a router, and those that are yet to come."""
    until(lambda: uplink.advertise("2001:db8:1::") or uplink.default_route(), "a default route")  # type: ignore[func-returns-value, redundant-expr]
    before = uplink.switches()
    route = uplink.default_route().split(" expires")[0]
    assert before["uplink/accept_ra"] == "1"
    in_netns(uplink.node, lambda: forwarding.forward_ipv6("cri0"))
    after = uplink.switches()
    assert len(after) == len(before)
    assert after.pop("all/forwarding") == "1"
    assert after.pop("cri0/forwarding") == "1"
    assert after.items() <= before.items()
    assert uplink.default_route().startswith(route)
    uplink.at(uplink.node, "ip", "link", "add", "later", "type", "bridge")
    assert uplink.switches()["later/accept_ra"] == "1"
    assert uplink.switches()["later/forwarding"] == "0"
    # The next advertisement counts, too.
    uplink.advertise("2001:db8:2::")
    shown = ("ip", "-6", "addr", "show", "dev", "uplink")
    until(lambda: "2001:db8:2:" in uplink.at(uplink.node, *shown), "an address of it")


def test_a_node_that_forwards_already_is_not_touched(uplink: Uplink) -> None:
    uplink.at(uplink.node, "sh", "-c", f"echo 1 > {CONF6}/all/forwarding")
    before = uplink.switches()
    in_netns(uplink.node, lambda: forwarding.forward_ipv6("cri0"))
    assert uplink.switches() == before


def test_the_agent_changes_no_link_but_its_own(pods: Pods) -> None:
    def switches() -> dict[str, str]:
        return {
            f"{conf.name}/{key}": (conf / key).read_text()
            for conf in CONF6.iterdir()
            if not conf.name.startswith("cri") and conf.name != "all"
            for key in SWITCHES
        }

    agent.stop()
    subprocess.run(["ip", "link", "add", "other", "type", "bridge"], check=True)
    try:
        (CONF6 / "all/forwarding").write_text("0")
        before = switches()
        pods.cri = agent.start()
        assert switches() == before
        assert (CONF6 / "all/forwarding").read_text() == "1\n"
        for key in ("accept_ra", "accept_redirects"):
            assert (CONF6 / "cri0" / key).read_text() == "0\n"
    finally:
        subprocess.run(["ip", "link", "del", "other"], check=True)
