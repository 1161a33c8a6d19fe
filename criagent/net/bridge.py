# SPDX-License-Identifier: Apache-2.0
"""The built-in pod network: a bridge, a veth pair per pod, addresses from the store, nftables.

Every object follows from the sandbox id: the host's end of the veth is `cri` and the id's first
eleven digits, and both ends have hardware addresses derived from it. Netlink and nftables calls run
in the network thread. IPv6 follows the pod CIDRs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import Background, run_in
from criagent.base.errors import AgentError, InvalidRequestError
from criagent.config import checks
from criagent.kernel import namespaces, netlink
from criagent.model.sandbox import Sandbox
from criagent.net import antispoof, forwarding, hostport, rules
from criagent.net.departures import Departures
from criagent.net.flows import forget_flows
from criagent.net.pod_network import Attachment, NetworkCondition
from criagent.net.rule_keeper import RuleKeeper
from criagent.store.addresses import AddressStore, Network, NetworkFullError
from criagent.store.settings import SettingStore

_CIDR_SETTING = "pod_cidrs"
_INTERFACE = "eth0"
PORT_PREFIX = "cri"  # of the names of pods' links

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
        self._reserved: dict[str, list[Network]] = {}  # of pods that have addresses but no link yet
        self._departing: set[str] = set()  # pods without a link that still hold addresses
        self._rules = RuleKeeper(net, self._contents, anti_spoofing=config.anti_spoofing)
        self._repair = Background("bridge")
        self._departures = Departures(self._departed, self._delete_links)

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
        owners = self._addresses.owners()
        held = [
            ip_address(text)
            for sandbox_id, row in owners.items()
            if sandbox_id not in self._departing
            for text in row
        ]
        former = map(str, self._outside(held))
        return [*self.cidrs, *former]

    def _outside(self, addresses: Sequence[netlink.Address]) -> list[netlink.Address]:
        """Those in none of the networks in force."""
        networks = self._networks
        return [one for one in addresses if not any(one in network for network in networks)]

    async def start(self) -> None:
        """Create the bridge with its gateway addresses, set sysctls, write the nftables tables."""
        sandboxes = [sandbox for sandbox in self._live() if sandbox.network_backend == self.backend]
        self._forwards = {
            sandbox.id: hostport.forwards(sandbox, sandbox.addresses) for sandbox in sandboxes
        }
        # Those of pods that have ended may still have a link.
        owners = {sandbox.id for sandbox in sandboxes} | self._addresses.owners().keys()
        self._ports = await run_in(self._net, self._ports_of, owners)
        self._departures.watch()
        self._rules.watch()
        await run_in(self._net, self._start)
        self._failure = ""

    async def stop(self) -> None:
        """Stop watching rules and links; pods keep their network."""
        await self._repair.stop()
        await self._departures.stop()
        await self._rules.stop()

    def condition(self) -> NetworkCondition:
        """Ready once the bridge is up and the rules are in force.

        Ready with a reason when the kernel cannot prevent spoofed addresses. A bridge that another
        program has deleted is made again in the background.
        """
        if not self._failure and not self._bridge_exists():
            self._repair.start(self._restore)
            text = f"another program has deleted the bridge {self._config.bridge}"
            return NetworkCondition(
                ready=False, reason="BridgeNotReady", message=f"{text}; it is made again"
            )
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

    async def reserve(self, sandbox: Sandbox) -> None:
        """Raises ExhaustedError when no address is left."""
        networks = self._networks
        await self._allocate(sandbox.id, networks)
        self._reserved[sandbox.id] = networks

    async def release(self, sandbox: Sandbox) -> None:
        """Release the addresses of a sandbox without a link."""
        self._reserved.pop(sandbox.id, None)
        attached = sandbox.id in self._ports or self._departures.holds(sandbox.id)
        if not attached and self._addresses.of(sandbox.id):
            await self._departed([sandbox.id])

    async def attach(
        self, sandbox: Sandbox, netns: Path, inside: netlink.RouteSocket | None = None
    ) -> Attachment:
        """Veth pair, addresses, routes and host ports of a new sandbox.

        Raises ExhaustedError when no address is left, AlreadyExistsError for a taken host port.
        """
        networks = self._reserved.pop(sandbox.id, None)
        if networks is None:
            networks = self._networks
            await self._allocate(sandbox.id, networks)
        addresses = self._addresses.of(sandbox.id)
        wanted = hostport.forwards(sandbox, addresses)
        hostport.check_conflicts(sandbox.id, wanted, self._forwards)
        if wanted:
            self._forwards[sandbox.id] = wanted
        port = self._ports[sandbox.id] = _port(sandbox.id, addresses)
        gateways = [network[1] for network in networks]
        if inside is not None:
            configure = partial(_configure, inside, addresses, gateways)
        else:
            here = partial(_configure_here, addresses, gateways)
            configure = partial(namespaces.in_netns, netns, here)
        await run_in(self._net, self._attach, sandbox.id, netns, port, wanted, configure)
        if networks != self._networks:  # they were changed while these addresses were being set
            await run_in(self._net, self._rules.write)
        await forget_flows(wanted)
        return Attachment(addresses=addresses)

    async def _allocate(self, sandbox_id: str, networks: Sequence[Network]) -> tuple[str, ...]:
        while True:
            try:
                return await self._addresses.allocate(sandbox_id, networks)
            except NetworkFullError:
                if not await self._departures.wait():
                    raise

    async def detach(self, sandbox: Sandbox, netns: Path | None) -> None:
        """Close the host ports, and release what else the pod has as soon as its link is gone.

        The kernel removes the link with the network namespace, which the caller drops next. Until
        then addresses and anti-spoofing rules stay, so that no other pod gets the old one's traffic
        and nothing is sent unchecked. Without a link they are gone at once.
        """
        del netns
        self._reserved.pop(sandbox.id, None)
        gone = self._forwards.pop(sandbox.id, None)
        if gone is None:
            gone = hostport.forwards(sandbox, self._addresses.of(sandbox.id))
            # A sandbox that was refused for a taken host port never owned that port.
            gone = hostport.unclaimed(gone, self._forwards)
        if gone:
            await run_in(self._net, self._close, gone)
            await forget_flows(gone)
            faults.reach("network-detach:ports")
        if not self._departures.add(_veth_name(sandbox.id), sandbox.id):
            await self._departed([sandbox.id])
        faults.reach("network-detach:link")

    async def _departed(self, sandbox_ids: Sequence[str]) -> None:
        """Release what is left of pods without a link: what rules say of them, then addresses."""
        ports = [
            self._ports.get(sandbox_id) or _port(sandbox_id, self._addresses.of(sandbox_id))
            for sandbox_id in sandbox_ids
        ]
        await run_in(self._net, self._disallow, ports)
        for sandbox_id in sandbox_ids:
            self._ports.pop(sandbox_id, None)
        self._departing.update(sandbox_ids)
        try:
            held = [ip_address(text) for one in sandbox_ids for text in self._addresses.of(one)]
            if self._outside(held) and self._rules.started:
                await run_in(self._net, self._rules.write)
            faults.reach("network-departed:rules")
            await self._addresses.release(*sandbox_ids)
        finally:
            self._departing.difference_update(sandbox_ids)
        faults.reach("network-departed:addresses")

    async def _delete_links(self, names: Sequence[str]) -> None:
        await run_in(self._net, self._delete, names)

    async def reconcile(self, live: Sequence[Sandbox]) -> None:
        """Remove addresses and links that belong to no live sandbox, and rules for none."""
        known = {sandbox.id for sandbox in live}
        names = {_veth_name(sandbox_id) for sandbox_id in known}
        await run_in(self._net, self._sweep, names)
        if strangers := self._addresses.owners().keys() - known:
            await self._departed(list(strangers))
        if not self._rules.started:
            await run_in(self._net, self._retire)

    def _bridge_exists(self) -> bool:
        """Whether the bridge is there, and the one that was set up."""
        return netlink.index_of(self._config.bridge) == self._index

    async def _restore(self) -> None:
        await run_in(self._net, self._make_again)

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

    def _ports_of(self, sandbox_ids: Iterable[str]) -> dict[str, antispoof.Port]:
        """Ports of sandboxes from before this start."""
        routes = self._route_socket()
        links = {link.name: link for link in routes.links()}
        found: dict[str, antispoof.Port] = {}
        for sandbox_id in sandbox_ids:
            port = _port(sandbox_id, self._addresses.of(sandbox_id))
            link = links.get(port.interface)
            if link is not None and link.mac != antispoof.host_mac(sandbox_id):
                # criagent 0.1 let the kernel choose both hardware addresses.
                mac = routes.peer_mac(link)
                if not mac:
                    log.warning("port_without_anti_spoofing", sandbox_id=sandbox_id, link=link.name)
                    continue
                port = dataclasses.replace(port, mac=mac)
            found[sandbox_id] = port
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
        if (link := routes.link(self._index)) is not None:
            routes.send([netlink.set_mac(self._index, link.mac)])
        self._connect()
        for network in self._networks:
            gateway = network[1]
            routes.send([netlink.address(self._index, gateway, network.prefixlen)], exist_ok=True)
        ipv6 = any(":" in cidr for cidr in self.cidrs)
        forwarding.set_up_bridge(name, ipv6=ipv6)
        forwarding.forward_ipv4()
        if ipv6:
            forwarding.forward_ipv6(name)
        self._rules.write()

    def _connect(self) -> None:
        """Make ports again of the links that lost their bridge, which had been deleted."""
        members = Path(f"/sys/class/net/{self._config.bridge}/brif")
        for name in [port.interface for port in list(self._ports.values())]:
            index = netlink.index_of(name)
            if index is not None and not (members / name).exists():
                requests = [netlink.join(index, self._index), netlink.hairpin(index)]
                self._route_socket().send(requests)

    def _make_again(self) -> None:
        """Make the bridge again if another program has deleted it, with the pods that it had."""
        if not self._bridge_exists():
            self._start()
            log.warning("bridge_restored", bridge=self._config.bridge)

    def _attach(
        self,
        sandbox_id: str,
        netns: Path,
        port: antispoof.Port,
        wanted: Sequence[hostport.Forward],
        configure: Callable[[], None],
    ) -> None:
        self._make_again()
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
        configure()

    def _close(self, gone: Sequence[hostport.Forward]) -> None:
        if self._rules.started:
            self._rules.change(hostport.delete_commands(gone))

    def _disallow(self, ports: Sequence[antispoof.Port]) -> None:
        if ports and self._rules.started and self._rules.prevents_spoofing:
            self._rules.change(antispoof.delete_commands(ports))

    def _delete(self, names: Sequence[str]) -> None:
        for name in names:
            index = netlink.index_of(name)
            if index is not None:
                self._route_socket().send([netlink.delete_link(index)], gone_ok=True)

    def _sweep(self, names: set[str]) -> None:
        members = Path(f"/sys/class/net/{self._config.bridge}/brif")
        for entry in members.iterdir() if members.exists() else ():
            if entry.name not in names and entry.name.startswith(PORT_PREFIX):
                self._delete([entry.name])
                log.warning("orphan_link_removed", link=entry.name)

    def _retire(self) -> None:
        """Remove the unused table of a backend that was not started, if there is one."""
        if netlink.index_of(self._config.bridge) is not None:
            try:
                self._rules.remove()
            except AgentError as exc:
                log.warning("rules_not_removed", error=str(exc))


def _veth_name(sandbox_id: str) -> str:
    return PORT_PREFIX + sandbox_id[:11]  # 14 characters; IFNAMSIZ leaves 15


def _port(sandbox_id: str, addresses: Sequence[str]) -> antispoof.Port:
    return antispoof.Port(
        interface=_veth_name(sandbox_id),
        mac=antispoof.pod_mac(sandbox_id),
        addresses=tuple(addresses),
    )


def _configure_here(addresses: Sequence[str], gateways: Sequence[netlink.Address]) -> None:
    """As `_configure`, in the network namespace of this thread."""
    with netlink.RouteSocket() as routes:
        _configure(routes, addresses, gateways)


def _configure(
    routes: netlink.RouteSocket, addresses: Sequence[str], gateways: Sequence[netlink.Address]
) -> None:
    index = routes.index_of(_INTERFACE)
    requests = []
    for text in addresses:
        address = ip_address(text)
        requests.append(netlink.address(index, address, address.max_prefixlen))
    requests.append(netlink.set_up(index))
    requests += [netlink.default_route(index, gateway) for gateway in gateways]
    routes.send(requests)
