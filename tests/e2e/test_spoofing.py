# SPDX-License-Identifier: Apache-2.0
"""What a pod may claim to be on the bridge: its own addresses, and nothing of others."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.packets import (
    ALL_NODES,
    ARP,
    IP,
    IP6,
    Host,
    Wire,
    advertisement,
    arp,
    arrives,
    ethernet,
    hardware_option,
    icmpv6,
    ipv4,
    ipv6,
    link_local,
    mark,
    nd,
    udp,
)
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root
OFF = "[network]\nanti_spoofing = false\n"
NOBODY = bytes.fromhex("02dddddddddd")

Frame = Callable[[Host, Host], bytes]


def netns(sandbox: str) -> Path:
    return Path(f"/run/criagent/sandboxes/{sandbox}/ns/net")


def inside(sandbox: str, *command: str) -> str:
    return subprocess.check_output(["nsenter", f"--net={netns(sandbox)}", *command], text=True)


def host(pods: Pods, sandbox: str) -> Host:
    network = pods.cri.pod_status(sandbox).network
    (link,) = json.loads(inside(sandbox, "ip", "-j", "link", "show", "eth0"))
    mac = bytes.fromhex(link["address"].replace(":", ""))
    return Host(
        mac=mac, ip4=network.ip, ip6=network.additional_ips[0].ip, link_local=link_local(mac)
    )


def to_all(source: bytes, kind: int, packet: bytes) -> bytes:
    return ethernet(source, kind, packet)


def claim(a: Host, address: str, mac: bytes | None = None, source: bytes | None = None) -> bytes:
    """A gratuitous ARP reply of `a`."""
    return to_all(source or a.mac, ARP, arp(2, mac or a.mac, address, address))


def datagram6(a: Host, source: str, target: str = ALL_NODES) -> bytes:
    return to_all(a.mac, IP6, ipv6(source, target, 59, b"nothing follows"))


def with_extension(a: Host, packet: bytes) -> bytes:
    """The same packet with an empty destination options header in between."""
    head, payload = packet[:40], packet[40:]
    extension = bytes([head[6], 0, 1, 4, 0, 0, 0, 0])
    length = (len(payload) + 8).to_bytes(2, "big")
    return to_all(a.mac, IP6, head[:4] + length + bytes([60, 255]) + head[8:] + extension + payload)


FORBIDDEN: dict[str, Frame] = {
    "hardware address of another pod": lambda a, v: to_all(v.mac, IP, ipv4(a.ip4, v.ip4, 17, b"")),
    "hardware address of nobody": lambda a, v: claim(a, a.ip4, source=NOBODY),
    "IPv4 of another pod": lambda a, v: to_all(a.mac, IP, ipv4(v.ip4, a.ip4, 17, udp(1, 2))),
    "IPv4 of the gateway": lambda a, v: to_all(a.mac, IP, ipv4("10.88.0.1", v.ip4, 17, udp(1, 2))),
    "IPv4 of the internet": lambda a, v: to_all(a.mac, IP, ipv4("8.8.8.8", v.ip4, 17, udp(1, 2))),
    "IPv4 of loopback": lambda a, v: to_all(a.mac, IP, ipv4("127.0.0.1", v.ip4, 17, udp(1, 2))),
    "ARP reply for another pod": lambda a, v: claim(a, v.ip4),
    "ARP reply for the gateway": lambda a, v: claim(a, "10.88.0.1"),
    "ARP request as another pod": lambda a, v: to_all(a.mac, ARP, arp(1, a.mac, v.ip4, v.ip4)),
    "ARP with another hardware address": lambda a, v: claim(a, a.ip4, mac=NOBODY),
    "ARP of another kind of hardware": lambda a, v: to_all(
        a.mac, ARP, arp(2, a.mac, v.ip4, v.ip4, 6)
    ),
    "ARP reply for no address": lambda a, v: claim(a, "0.0.0.0"),
    "ARP in VLAN 0": lambda a, v: to_all(
        a.mac, 0x8100, b"\0\0\x08\x06" + arp(2, a.mac, v.ip4, v.ip4)
    ),
    "reverse ARP": lambda a, v: to_all(a.mac, 0x8035, arp(3, v.mac, v.ip4, v.ip4)),
    "spanning tree": lambda a, v: to_all(a.mac, 0x0026, bytes.fromhex("424203") + b"bridge" * 6),
    "IPv6 of another pod": lambda a, v: datagram6(a, v.ip6),
    "IPv6 of the gateway": lambda a, v: datagram6(a, "fd00:10:88::1"),
    "IPv6 of the internet": lambda a, v: datagram6(a, "2001:db8::1"),
    "link-local address of another pod": lambda a, v: datagram6(a, v.link_local),
    "no IPv6 address": lambda a, v: datagram6(a, "::"),
    "advertisement for another pod": lambda a, v: to_all(
        a.mac, IP6, nd(a.ip6, 136, v.ip6, hardware_option(2, a.mac))
    ),
    "advertisement for the gateway": lambda a, v: to_all(
        a.mac, IP6, nd(a.link_local, 136, "fd00:10:88::1", hardware_option(2, a.mac))
    ),
    "advertisement without a hardware address": lambda a, v: to_all(
        a.mac, IP6, nd(a.ip6, 136, v.ip6)
    ),
    "advertisement of another hardware address": lambda a, v: to_all(
        a.mac, IP6, nd(a.ip6, 136, a.ip6, hardware_option(2, NOBODY))
    ),
    "advertisement behind an extension": lambda a, v: with_extension(
        a, nd(a.ip6, 136, v.ip6, hardware_option(2, a.mac))
    ),
    "advertisement that is cut off": lambda a, v: to_all(
        a.mac, IP6, ipv6(a.ip6, ALL_NODES, 58, icmpv6(a.ip6, ALL_NODES, 136, b"\x20\0\0\0half"))
    ),
    "solicitation as another pod": lambda a, v: to_all(
        a.mac, IP6, nd(v.ip6, 135, "fd00:10:88::1", hardware_option(1, a.mac))
    ),
    "solicitation with another hardware address": lambda a, v: to_all(
        a.mac, IP6, nd(a.ip6, 135, v.ip6, hardware_option(1, NOBODY))
    ),
    "solicitation with it in a later option": lambda a, v: to_all(
        a.mac,
        IP6,
        nd(a.ip6, 135, v.ip6, bytes([14, 1]) + b"nonce!" + hardware_option(1, NOBODY)),
    ),
    "duplicate address detection of another pod's": lambda a, v: to_all(
        a.mac, IP6, nd("::", 135, v.link_local)
    ),
    "router advertisement": lambda a, v: to_all(
        a.mac, IP6, advertisement(a.link_local, a.mac, "2001:db8:bad::")
    ),
    "router advertisement behind an extension": lambda a, v: with_extension(
        a, advertisement(a.link_local, a.mac, "2001:db8:bad::")
    ),
    "redirect": lambda a, v: to_all(
        a.mac,
        IP6,
        ipv6(
            a.link_local, v.ip6, 58, icmpv6(a.link_local, v.ip6, 137, bytes(4) + b"\xfe\x80" * 16)
        ),
    ),
    "DHCP answer": lambda a, v: to_all(a.mac, IP, ipv4(a.ip4, v.ip4, 17, udp(67, 68))),
    "DHCPv6 answer": lambda a, v: to_all(
        a.mac, IP6, ipv6(a.link_local, ALL_NODES, 17, udp(547, 546))
    ),
}

ALLOWED: dict[str, Frame] = {
    "IPv4": lambda a, v: to_all(a.mac, IP, ipv4(a.ip4, v.ip4, 17, udp(1, 2))),
    "IPv4 multicast": lambda a, v: to_all(
        a.mac, IP, ipv4(a.ip4, "224.0.0.251", 17, udp(5353, 5353))
    ),
    "ARP reply": lambda a, v: claim(a, a.ip4),
    "ARP request": lambda a, v: to_all(a.mac, ARP, arp(1, a.mac, a.ip4, v.ip4)),
    "ARP probe": lambda a, v: to_all(a.mac, ARP, arp(1, a.mac, "0.0.0.0", "10.88.200.1")),
    "IPv6": lambda a, v: datagram6(a, a.ip6),
    "link-local": lambda a, v: datagram6(a, a.link_local),
    "echo from the link-local address": lambda a, v: to_all(
        a.mac,
        IP6,
        ipv6(a.link_local, ALL_NODES, 58, icmpv6(a.link_local, ALL_NODES, 128, b"\0\1\0\1ping")),
    ),
    "solicitation": lambda a, v: to_all(
        a.mac, IP6, nd(a.ip6, 135, v.ip6, hardware_option(1, a.mac))
    ),
    "solicitation without a hardware address": lambda a, v: to_all(
        a.mac, IP6, nd(a.link_local, 135, v.link_local)
    ),
    "duplicate address detection": lambda a, v: to_all(a.mac, IP6, nd("::", 135, a.link_local)),
    "duplicate address detection with a nonce": lambda a, v: to_all(
        a.mac, IP6, nd("::", 135, a.link_local, bytes([14, 1]) + b"nonce!")
    ),
    "advertisement": lambda a, v: to_all(
        a.mac, IP6, nd(a.ip6, 136, a.ip6, hardware_option(2, a.mac))
    ),
    "advertisement of the link-local address": lambda a, v: to_all(
        a.mac, IP6, nd(a.link_local, 136, a.link_local, hardware_option(2, a.mac))
    ),
    "advertisement without a hardware address": lambda a, v: to_all(
        a.mac, IP6, nd(a.ip6, 136, a.ip6)
    ),
    "router solicitation": lambda a, v: to_all(
        a.mac, IP6, ipv6("::", "ff02::2", 58, icmpv6("::", "ff02::2", 133, bytes(4)))
    ),
    "multicast listener report without an address": lambda a, v: to_all(
        a.mac, IP6, ipv6("::", "ff02::16", 58, icmpv6("::", "ff02::16", 143, bytes(4)))
    ),
    "multicast listener report": lambda a, v: to_all(
        a.mac,
        IP6,
        ipv6(a.link_local, "ff02::16", 58, icmpv6(a.link_local, "ff02::16", 143, bytes(4))),
    ),
}


class Pair:
    """An attacker and a victim, pods of one bridge, with raw sockets in both."""

    def __init__(self, pods: Pods) -> None:
        self.sandboxes = [pods.sandbox()[0] for _ in range(2)]
        self.attacker, self.victim = (host(pods, sandbox) for sandbox in self.sandboxes)
        self._wires = [Wire(netns(sandbox)) for sandbox in self.sandboxes]

    def arrives(self, frame: bytes) -> bool:
        return arrives(self._wires[0], self.attacker, self._wires[1], frame)

    def arriving(self, frames: dict[str, Frame]) -> list[str]:
        """Names of those frames of the attacker that the victim gets."""
        a, v = self.attacker, self.victim
        return [name for name, frame in frames.items() if self.arrives(frame(a, v))]

    def send(self, frame: bytes, by: int) -> None:
        self._wires[by].send(frame)

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


@pytest.fixture
def pair(pods: Pods) -> Iterator[Pair]:
    made = Pair(pods)
    yield made
    made.close()


@pytest.fixture
def restarted(pods: Pods) -> Iterator[Callable[[str], Cri]]:
    """The agent anew with a configuration; afterwards with its own again, without pods."""

    def restart(config: str = "") -> Cri:
        agent.stop()
        pods.cri = agent.start(config)
        return pods.cri

    yield restart
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    restart()


def test_no_pod_uses_addresses_of_others(pair: Pair) -> None:
    assert pair.arriving(FORBIDDEN) == []


def test_what_pods_say_of_themselves_is_heard(pair: Pair) -> None:
    assert pair.arriving(ALLOWED) == list(ALLOWED)


def test_the_key_switches_it_off_and_on_for_pods_that_run(
    pair: Pair, restarted: Callable[[str], Cri]
) -> None:
    restarted(OFF)
    assert "bridge" not in subprocess.check_output(["nft", "list", "tables"], text=True)
    assert pair.arriving(FORBIDDEN) == list(FORBIDDEN)
    restarted("")
    assert pair.arriving(FORBIDDEN) == []
    assert pair.arriving(ALLOWED) == list(ALLOWED)


def test_the_neighbours_of_the_node_and_of_pods_stay_what_they_are(pair: Pair) -> None:
    a, v = pair.attacker, pair.victim
    for target in ("10.88.0.1", "fd00:10:88::1"):
        inside(pair.sandboxes[1], "busybox", "ping", "-c1", "-W5", target)

    def neighbours() -> list[str]:
        node = subprocess.check_output(["ip", "neigh", "show", "dev", "cri0"], text=True)
        pod = inside(pair.sandboxes[1], "ip", "neigh", "show", "dev", "eth0")
        return sorted(re.findall(r"(\S+) lladdr (\S+)", node + pod))

    before = neighbours()
    assert (v.ip4, v.mac.hex(":")) in before  # type: ignore[comparison-overlap]
    for address in (v.ip4, "10.88.0.1"):
        assert not pair.arrives(claim(a, address))
    for address in (v.ip6, "fd00:10:88::1"):
        packet = nd(a.ip6, 136, address, hardware_option(2, a.mac))
        assert not pair.arrives(to_all(a.mac, IP6, packet))
    assert [entry for entry in neighbours() if entry in before] == before


def test_the_bridge_learns_no_address_of_another_pod(pair: Pair) -> None:
    """Frames to reserved groups are not forwarded, but the bridge looks at their sources."""

    def port() -> str:
        command = ["bridge", "fdb", "show", "br", "cri0"]
        table = subprocess.check_output(command, text=True).splitlines()
        victim = f"{pair.victim.mac.hex(':')} dev "
        return next(line.split()[2] for line in table if line.startswith(victim))

    pair.send(mark(pair.victim), 1)
    until(lambda: port() == f"cri{pair.sandboxes[1][:11]}", "an entry of the victim")
    for group in ("0180c2000000", "0180c2000003", "0180c200000e"):
        frame = ethernet(pair.victim.mac, 0x88CC, b"discovery" * 6, bytes.fromhex(group))
        assert not pair.arrives(frame)
        assert port() == f"cri{pair.sandboxes[1][:11]}", group


def test_ordinary_tools_work(pods: Pods) -> None:
    sandboxes = [pods.sandbox() for _ in range(2)]
    container_ids = [pods.running(pod=sandbox) for sandbox in sandboxes]
    other = host(pods, sandboxes[1][0])
    for address in (other.ip4, other.ip6, f"{other.link_local}%eth0", "10.88.0.1"):
        done = pods.cri.exec(container_ids[0], "ping", "-c", "2", "-s", "4000", "-W", "5", address)
        assert done.exit_code == 0, done.stdout
    assert (
        pods.cri.exec(container_ids[0], "ping", "-c", "1", "-W", "5", "ff02::1%eth0").exit_code == 0
    )
    assert pods.cri.exec(container_ids[0], "arping", "-c", "1", "-w", "5", other.ip4).exit_code == 0
    assert (
        pods.cri.exec(container_ids[0], "arping", "-D", "-c", "1", "-w", "1", other.ip4).exit_code
        == 1
    )
    for sandbox, _ in sandboxes:
        shown = inside(sandbox, "ip", "-6", "addr", "show", "dev", "eth0")
        assert "dadfailed" not in shown
        assert "tentative" not in shown


def test_pods_of_one_name_in_two_namespaces_are_two(pods: Pods) -> None:
    def named(namespace: str) -> str:
        config = pods.config()
        config.metadata.name, config.metadata.namespace = "same", namespace
        return pods.cri.run(config)

    def rules() -> str:
        return subprocess.check_output(["nft", "list", "table", "bridge", "criagent"], text=True)

    first, second = named("one"), named("two")
    before = rules()
    for sandbox in (first, second):
        assert f'"cri{sandbox[:11]}" . {host(pods, sandbox).ip4}' in before
        inside(sandbox, "busybox", "ping", "-c1", "-W5", "10.88.0.1")
    pods.cri.remove_pod(first)
    until(lambda: first[:11] not in rules(), "the end of the first pod's rules, after its link's")
    assert second[:11] in rules()


def test_a_pod_that_changes_its_interface_gains_nothing(
    pair: Pair, restarted: Callable[[str], Cri]
) -> None:
    """Not even over a restart of the agent, which knows what it gave."""
    a, v = pair.attacker, pair.victim
    sandbox = pair.sandboxes[0]
    inside(sandbox, "ip", "addr", "add", f"{v.ip4}/32", "dev", "eth0")
    inside(sandbox, "ip", "link", "set", "eth0", "address", v.mac.hex(":"))
    restarted("")
    inside(sandbox, "ip", "link", "set", "eth0", "address", a.mac.hex(":"))
    assert pair.arriving(FORBIDDEN) == []


@pytest.fixture
def pods_of_version_0_1(pods: Pods) -> list[str]:
    """Two sandboxes whose links are as criagent 0.1 made them: with addresses of the kernel's."""
    sandboxes = [pods.sandbox()[0] for _ in range(2)]
    known = [host(pods, sandbox) for sandbox in sandboxes]
    agent.stop()
    for sandbox, was in zip(sandboxes, known, strict=True):
        link = f"cri{sandbox[:11]}"
        subprocess.run(["ip", "link", "del", link], check=True)
        pid = subprocess.Popen(["nsenter", f"--net={netns(sandbox)}", "sleep", "1000"])
        try:
            script = f"""set -e
                ip link add {link} type veth peer name eth0 netns {pid.pid}
                ip link set {link} master cri0 up
                nsenter --net={netns(sandbox)} sh -ec '
                    ip addr add {was.ip4}/32 dev eth0
                    ip addr add {was.ip6}/128 dev eth0 nodad
                    ip link set eth0 up
                    ip route add default via 10.88.0.1 dev eth0 onlink'"""
            until(lambda pid=pid, sandbox=sandbox: in_the_netns(pid.pid, sandbox), "nsenter")
            subprocess.run(["sh", "-c", script], check=True)
        finally:
            pid.kill()
            pid.wait()
    subprocess.run(["nft", "delete table bridge criagent"], check=False)
    pods.cri = agent.start()
    return sandboxes


def in_the_netns(pid: int, sandbox: str) -> bool:
    return Path(f"/proc/{pid}/ns/net").stat().st_ino == netns(sandbox).stat().st_ino


def test_pods_of_a_version_without_it_are_guarded_after_the_update(
    pods: Pods, pods_of_version_0_1: list[str]
) -> None:
    attacker, victim = (host(pods, sandbox) for sandbox in pods_of_version_0_1)
    assert attacker.mac[1:] != bytes.fromhex(pods_of_version_0_1[0][:10])
    wires = [Wire(netns(sandbox)) for sandbox in pods_of_version_0_1]
    for frames, expected in ((FORBIDDEN, []), (ALLOWED, list(ALLOWED))):
        found = [
            name
            for name, frame in frames.items()
            if arrives(wires[0], attacker, wires[1], frame(attacker, victim))
        ]
        assert found == expected
    for wire in wires:
        wire.close()
    for sandbox in pods_of_version_0_1:
        pods.cri.remove_pod(sandbox)


@pytest.fixture
def refused_by_the_kernel(pods: Pods) -> Iterator[None]:
    """Nobody but their owner may touch tables with one, which is as good as a kernel without."""
    agent.stop()
    subprocess.run(["nft", "delete table bridge criagent"], check=True)
    with subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdin is not None
        owner.stdin.write(b"add table bridge criagent { flags owner; }\n")
        owner.stdin.flush()
        listing = ["nft", "list", "tables"]
        until(lambda: b"bridge criagent" in subprocess.check_output(listing), "the table")
        pods.cri = agent.start()
        yield
        for sandbox in pods.cri.pods():
            pods.cri.remove_pod(sandbox.id)
        agent.stop()
        owner.stdin.close()
        owner.wait()
    pods.cri = agent.start()


@pytest.mark.usefixtures("refused_by_the_kernel")
def test_without_the_kernels_help_pods_run_and_status_says_so(pods: Pods) -> None:
    status = pods.cri.runtime.Status(api.StatusRequest()).status
    ready = next(one for one in status.conditions if one.type == "NetworkReady")
    assert ready.status
    assert ready.reason == "SpoofingNotPrevented"
    assert "pods can use addresses of other pods: nftables rejected" in ready.message
    assert "spoofing_not_prevented" in agent.LOG.read_text()
    pair = Pair(pods)
    assert pair.arriving(ALLOWED) == list(ALLOWED)
    pair.close()


def test_the_gateway_keeps_its_hardware_address_while_pods_come_and_go(pods: Pods) -> None:
    def mac() -> str:
        return Path("/sys/class/net/cri0/address").read_text()

    before = mac()
    for sandbox in [pods.sandbox()[0] for _ in range(3)]:
        assert mac() == before
        pods.cri.remove_pod(sandbox)
    assert mac() == before


def test_links_of_others_on_the_bridge_are_left_alone(pods: Pods, tmp_path: Path) -> None:
    """Virtual machines of the node's owner, say."""
    sandbox, _ = pods.sandbox()
    script = f"""set -e
        ip netns add other
        ip link add other type veth peer name eth0 netns other
        ip link set other master cri0 up
        ip -n other addr add 10.88.77.1/16 dev eth0
        ip -n other link set eth0 up
        ip netns exec other busybox ping -c1 -W5 {host(pods, sandbox).ip4}"""
    try:
        subprocess.run(["sh", "-c", script], check=True)
    finally:
        undo = "ip link del other; ip netns del other; umount /run/netns"
        subprocess.run(["sh", "-c", undo], check=True)
