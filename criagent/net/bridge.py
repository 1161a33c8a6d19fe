# SPDX-License-Identifier: Apache-2.0
"""The built-in pod network: a bridge, a veth pair per pod, addresses from the store, nftables.

Every object follows from the sandbox id: the host's end of the veth is `cri` and the id's first
eleven digits, and both ends have hardware addresses derived from it. Netlink and nftables calls run
in the network thread. IPv6 follows the pod CIDRs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from ipaddress import ip_address, ip_network
from pathlib import Path

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import AgentError, InvalidRequestError
from criagent.config import checks
from criagent.kernel import namespaces, netlink
from criagent.model.sandbox import Sandbox
from criagent.net import antispoof, forwarding, hostport, rules
from criagent.net.flows import forget_flows
from criagent.net.pod_network import Attachment, NetworkCondition
from criagent.net.rule_keeper import RuleKeeper
from criagent.store.addresses import AddressStore, Network
from criagent.store.settings import SettingStore

_CIDR_SETTING = "pod_cidrs"
_INTERFACE = "eth0"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    """Values of the `network` section that this backend needs."""

    bridge: str
    pod_cidrs: tuple[str, ...]
    mtu: int  # 0 = the MTU of the default route
    anti_spoofing: bool


class BridgeNetwork:
    """Pods on one bridge, with their own addresses as /32 and /128 and on-link routes."""

    backend = "builtin"

    def __init__(
        self,
        config: BridgeConfig,
        addresses: AddressStore,
        settings: SettingStore,
        net: Executor,
        live: Callable[[], Sequence[Sandbox]],
    ) -> None:
        self._config = config
        self._addresses = addresses
        self._settings = settings
        self._net = net
        self._live = live
        self._routes: netlink.RouteSocket | None = None
        self._index = 0
        self._mtu = 1500
        self._failure = "the network has not started"
        self._forwards: dict[str, list[hostport.Forward]] = {}
        self._ports: dict[str, antispoof.Port] = {}
        self._rules = RuleKeeper(net, self._contents, anti_spoofing=config.anti_spoofing)

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The pod networks in force: the kubelet's if it set one, else the configuration's."""
        given = self._settings.get(_CIDR_SETTING)
        return tuple(given.split(",")) if given else self._config.pod_cidrs

    @property
    def _networks(self) -> list[Network]:
        return [ip_network(cidr) for cidr in self.cidrs]

    @property
    def _pods(self) -> list[str]:
        """The networks in force, and single addresses that pods have from earlier ones."""
        networks = self._networks
        held = [ip_address(text) for row in self._addresses.owners().values() for text in row]
        former = [str(one) for one in held if not any(one in network for network in networks)]
        return [*self.cidrs, *former]

    async def start(self) -> None:
        """Create the bridge with its gateway addresses, set sysctls, write the nftables tables."""
        sandboxes = [sandbox for sandbox in self._live() if sandbox.network_backend == self.backend]
        self._forwards = {
            sandbox.id: hostport.forwards(sandbox, sandbox.addresses) for sandbox in sandboxes
        }
        self._ports = await run_in(self._net, self._ports_of, sandboxes)
        self._rules.watch()
        await run_in(self._net, self._start)
        self._failure = ""

    async def stop(self) -> None:
        """Stop watching the rules; pods keep their network."""
        await self._rules.stop()

    def condition(self) -> NetworkCondition:
        """Ready once the bridge is up and the rules are in force.

        Ready with a reason when the kernel cannot prevent spoofed addresses.
        """
        if failure := self._failure or self._rules.failure:
            return NetworkCondition(ready=False, reason="BridgeNotReady", message=failure)
        if problem := self._rules.open_to_spoofing:
            return NetworkCondition(
                ready=True,
                reason="SpoofingNotPrevented",
                message=f"pods can use addresses of other pods: {problem}",
            )
        return NetworkCondition(ready=True)

    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """Use `cidrs` for new pods; existing pods keep their addresses and stay connected.

        Raises InvalidRequestError for networks that the configuration may not contain either.
        """
        try:
            checks.cidrs(cidrs)
        except ValueError as problem:
            raise InvalidRequestError(f"pod CIDR {problem}") from None
        await self._settings.put(_CIDR_SETTING, ",".join(str(ip_network(cidr)) for cidr in cidrs))
        await run_in(self._net, self._start)

    async def attach(self, sandbox: Sandbox, netns: Path) -> Attachment:
        """Addresses, veth pair, routes and host ports of a new sandbox.

        Raises ExhaustedError when no address is left, AlreadyExistsError for a taken host port.
        """
        networks = self._networks
        addresses = await self._addresses.allocate(sandbox.id, networks)
        wanted = hostport.forwards(sandbox, addresses)
        hostport.check_conflicts(sandbox.id, wanted, self._forwards)
        if wanted:
            self._forwards[sandbox.id] = wanted
        port = self._ports[sandbox.id] = _port(sandbox.id, addresses)
        await run_in(self._net, self._attach, sandbox.id, netns, networks, port, wanted)
        await forget_flows(wanted)
        return Attachment(addresses=addresses)

    async def detach(self, sandbox: Sandbox, netns: Path | None) -> None:
        """Remove veth, rules, flows and addresses, so that the next pod sees no old traffic."""
        del netns
        addresses = self._addresses.of(sandbox.id)
        gone = self._forwards.pop(sandbox.id, None)
        if gone is None:
            gone = hostport.forwards(sandbox, addresses)
            # A sandbox that was refused for a taken host port never owned that port.
            gone = hostport.unclaimed(gone, self._forwards)
        port = self._ports.pop(sandbox.id, None) or _port(sandbox.id, addresses)
        await run_in(self._net, self._detach, port, gone)
        await forget_flows(gone)
        await self._addresses.release(sandbox.id)

    async def reconcile(self, live: Sequence[Sandbox]) -> None:
        """Remove addresses and links that belong to no live sandbox, and rules for none."""
        known = {sandbox.id for sandbox in live}
        for owner in self._addresses.owners():
            if owner not in known:
                await self._addresses.release(owner)
        names = {_veth_name(sandbox_id) for sandbox_id in known}
        await run_in(self._net, self._sweep, names)
        if not self._rules.started:
            await run_in(self._net, self._retire)

    def _contents(self) -> rules.Contents:
        # Copies made in one step: verbs change the dicts in the event loop's thread.
        forwards = list(self._forwards.values())
        ports = list(self._ports.values())
        return rules.Contents(
            bridge=self._config.bridge,
            pods=self._pods,
            forwards=[forward for held in forwards for forward in held],
            ports=ports,
        )

    # The rest runs in the network thread.

    def _route_socket(self) -> netlink.RouteSocket:
        if self._routes is None:
            self._routes = netlink.RouteSocket()
        return self._routes

    def _ports_of(self, sandboxes: Sequence[Sandbox]) -> dict[str, antispoof.Port]:
        """Ports of sandboxes from before this start."""
        routes = self._route_socket()
        links = {link.name: link for link in routes.links()}
        found: dict[str, antispoof.Port] = {}
        for sandbox in sandboxes:
            port = _port(sandbox.id, self._addresses.of(sandbox.id))
            link = links.get(port.interface)
            if link is not None and link.mac != antispoof.host_mac(sandbox.id):
                # criagent 0.1 let the kernel choose both hardware addresses.
                mac = routes.peer_mac(link)
                if not mac:
                    log.warning("port_without_anti_spoofing", sandbox_id=sandbox.id, link=link.name)
                    continue
                port = dataclasses.replace(port, mac=mac)
            found[sandbox.id] = port
        return found

    def _start(self) -> None:
        routes = self._route_socket()
        self._mtu = self._config.mtu or routes.default_mtu()
        name = self._config.bridge
        routes.send([netlink.bridge(name)], exist_ok=True)
        routes.send([netlink.no_link_local_learning(name)])
        self._index = netlink.index_of(name) or 0
        # Otherwise it takes the lowest address of its ports, and pods lose their gateway for a
        # while when that pod is removed.
        mac = next(link.mac for link in routes.links() if link.index == self._index)
        routes.send([netlink.set_mac(self._index, mac)])
        for network in self._networks:
            gateway = network[1]
            routes.send([netlink.address(self._index, gateway, network.prefixlen)], exist_ok=True)
        ipv6 = any(":" in cidr for cidr in self.cidrs)
        forwarding.set_up_bridge(name, ipv6=ipv6)
        forwarding.forward_ipv4()
        if ipv6:
            forwarding.forward_ipv6(name)
        self._rules.write()

    def _attach(
        self,
        sandbox_id: str,
        netns: Path,
        networks: Sequence[Network],
        port: antispoof.Port,
        wanted: Sequence[hostport.Forward],
    ) -> None:
        routes = self._route_socket()
        # Before the link exists, so that the pod sends nothing unchecked.
        guard = antispoof.add_commands([port]) if self._rules.prevents_spoofing else ""
        if commands := guard + hostport.add_commands(wanted):
            self._rules.change(commands)
        host = netlink.End(port.interface, antispoof.host_mac(sandbox_id))
        peer = netlink.End(_INTERFACE, port.mac)
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            routes.send([netlink.veth(host, peer, self._index, fd, self._mtu)])
        finally:
            os.close(fd)
        # With br_netfilter, traffic redirected to a pod stays on the bridge, even to its own port.
        routes.send([netlink.hairpin(netlink.index_of(host.name) or 0)])
        gateways = [network[1] for network in networks]
        namespaces.in_netns(netns, lambda: _configure(port.addresses, gateways))
        if networks != self._networks:
            self._rules.write()  # other pods were added while these addresses were being set

    def _detach(self, port: antispoof.Port, gone: Sequence[hostport.Forward]) -> None:
        index = netlink.index_of(port.interface)
        if index is not None:
            self._route_socket().send([netlink.delete_link(index)])
        if self._rules.started:
            guard = antispoof.delete_commands([port]) if self._rules.prevents_spoofing else ""
            if commands := guard + hostport.delete_commands(gone):
                self._rules.change(commands)

    def _sweep(self, names: set[str]) -> None:
        members = Path(f"/sys/class/net/{self._config.bridge}/brif")
        for entry in members.iterdir() if members.exists() else ():
            if entry.name not in names and entry.name.startswith("cri"):
                index = netlink.index_of(entry.name)
                if index is not None:
                    self._route_socket().send([netlink.delete_link(index)])
                    log.warning("orphan_link_removed", link=entry.name)

    def _retire(self) -> None:
        """Remove the unused table of a backend that was not started, if there is one."""
        if netlink.index_of(self._config.bridge) is not None:
            try:
                self._rules.remove()
            except AgentError as exc:
                log.warning("rules_not_removed", error=str(exc))


def _veth_name(sandbox_id: str) -> str:
    return f"cri{sandbox_id[:11]}"  # 14 characters; IFNAMSIZ leaves 15


def _port(sandbox_id: str, addresses: Sequence[str]) -> antispoof.Port:
    return antispoof.Port(
        interface=_veth_name(sandbox_id),
        mac=antispoof.pod_mac(sandbox_id),
        addresses=tuple(addresses),
    )


def _configure(addresses: Sequence[str], gateways: Sequence[netlink.Address]) -> None:
    index = netlink.index_of(_INTERFACE) or 0
    requests = []
    for text in addresses:
        address = ip_address(text)
        requests.append(netlink.address(index, address, address.max_prefixlen))
    requests.append(netlink.set_up(index))
    requests += [netlink.default_route(index, gateway) for gateway in gateways]
    with netlink.RouteSocket() as routes:
        routes.send(requests)
