"""The built-in pod network: a bridge, a veth pair a pod, addresses from the store, nftables.

Every object follows from the sandbox id: the host's end of the veth is `cri` and the id's first
eleven digits. Netlink and nftables calls run in the network thread. IPv6 follows the pod CIDRs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from ipaddress import ip_address, ip_network
from pathlib import Path

import structlog

from criagent.aio import run_in
from criagent.config import check_cidrs
from criagent.errors import AgentError, InvalidRequestError
from criagent.kernel import namespaces, netlink, nft_events
from criagent.kernel.nftables import Nftables
from criagent.model import Sandbox
from criagent.net import hostport
from criagent.net.flows import forget_flows
from criagent.net.pod_network import Attachment, NetworkCondition
from criagent.store.addresses import AddressStore, Network
from criagent.store.settings import SettingStore

_CIDR_SETTING = "pod_cidrs"
_PAUSE_S = 0.1  # between two times that deleted rules are put back

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BridgeConfig:
    """Values of the `network` section that this backend needs."""

    bridge: str
    pod_cidrs: tuple[str, ...]
    mtu: int  # 0 = of the default route


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
        self._nft: Nftables | None = None
        self._routes: netlink.RouteSocket | None = None
        self._index = 0
        self._mtu = 1500
        self._failure = "the network has not started"
        self._forwards: dict[str, list[hostport.Forward]] = {}
        self._events: nft_events.NftEvents | None = None
        self._repair: asyncio.Task[None] | None = None
        # Generations of the ruleset: when the table was written whole, when of it was deleted.
        self._written = 0
        self._deleted = 0

    @property
    def cidrs(self) -> tuple[str, ...]:
        """The pod networks in force: the kubelet's when it gave one, else the configuration's."""
        given = self._settings.get(_CIDR_SETTING)
        return tuple(given.split(",")) if given else self._config.pod_cidrs

    @property
    def _networks(self) -> list[Network]:
        return [ip_network(cidr) for cidr in self.cidrs]

    @property
    def _pods(self) -> list[str]:
        """Where pods are: the networks in force, and addresses that some have from former ones."""
        networks = self._networks
        held = [ip_address(text) for row in self._addresses.owners().values() for text in row]
        former = [str(one) for one in held if not any(one in network for network in networks)]
        return [*self.cidrs, *former]

    async def start(self) -> None:
        """Make bridge, gateway addresses, kernel switches and the nftables table."""
        self._forwards = {
            box.id: hostport.forwards(box, box.addresses)
            for box in self._live()
            if box.network_backend == self.backend
        }
        self._events = nft_events.NftEvents()
        await run_in(self._net, self._start)
        self._failure = ""
        asyncio.get_running_loop().add_reader(self._events, self._rules_changed)

    async def stop(self) -> None:
        """Stop looking after the rules; pods keep their network."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events)
            self._events.close()
            self._events = None
        if self._repair is not None:
            self._repair.cancel()
            await asyncio.wait({self._repair})

    def condition(self) -> NetworkCondition:
        """Ready once the bridge is up."""
        if self._failure:
            return NetworkCondition(ready=False, reason="BridgeNotReady", message=self._failure)
        return NetworkCondition(ready=True)

    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """Use `cidrs` for pods from now on; existing pods keep their addresses, and are served.

        Raises InvalidRequestError for what the configuration may not say either.
        """
        if problem := check_cidrs(cidrs):
            raise InvalidRequestError(f"pod CIDR {problem}")
        await self._settings.put(_CIDR_SETTING, ",".join(str(ip_network(cidr)) for cidr in cidrs))
        await run_in(self._net, self._start)

    async def attach(self, box: Sandbox, netns: Path) -> Attachment:
        """Addresses, veth pair, routes and host ports of a new sandbox.

        Raises ExhaustedError when no address is left, AlreadyExistsError for a taken host port.
        """
        networks = self._networks
        addresses = await self._addresses.allocate(box.id, networks)
        wanted = hostport.forwards(box, addresses)
        hostport.check_conflicts(box.id, wanted, self._forwards)
        if wanted:
            self._forwards[box.id] = wanted
        await run_in(self._net, self._attach, box.id, netns, networks, addresses, wanted)
        await forget_flows(wanted)
        return Attachment(addresses=addresses)

    async def detach(self, box: Sandbox, netns: Path | None) -> None:
        """Take rules, veth, flows and addresses away; who gets them next has no old traffic."""
        del netns
        gone = self._forwards.pop(box.id, None)
        if gone is None:
            gone = hostport.forwards(box, self._addresses.of(box.id))
            # A sandbox that was refused for a taken host port never had it.
            gone = hostport.unclaimed(gone, self._forwards)
        await run_in(self._net, self._detach, box.id, gone)
        await forget_flows(gone)
        await self._addresses.release(box.id)

    async def reconcile(self, live: Sequence[Sandbox]) -> None:
        """Take back addresses and links that belong to no live sandbox, and rules for none."""
        known = {box.id for box in live}
        for owner in self._addresses.owners():
            if owner not in known:
                await self._addresses.release(owner)
        names = {_veth_name(box_id) for box_id in known}
        await run_in(self._net, self._sweep, names)
        if self._nft is None:
            await run_in(self._net, self._retire)

    def _rules_changed(self) -> None:
        """Somebody changed rules; when ours were deleted, they come back."""
        if self._damaged() and self._repair is None:
            self._repair = asyncio.create_task(self._restore(), name="nftables")
            self._repair.add_done_callback(self._restored)

    def _damaged(self) -> bool:
        """Whether rules of ours were deleted after the last time that we wrote them all."""
        if self._events is not None:
            deleted = self._events.deletions(hostport.NAME)
            self._deleted = max(self._deleted, self._written + 1 if deleted is None else deleted)
        return self._deleted > self._written

    def _restored(self, task: asyncio.Task[None]) -> None:
        self._repair = None
        if not task.cancelled() and (failure := task.exception()):
            log.error("rules_not_watched", error=repr(failure))

    async def _restore(self) -> None:
        """Write the table until nobody has deleted of it afterwards.

        While that fails, the condition says so.
        """
        while self._damaged():
            try:
                await run_in(self._net, self._write_table)
            except (AgentError, OSError) as exc:
                self._failure = f"the nftables rules were deleted and cannot be put back: {exc}"
                log.warning("rules_not_restored", error=str(exc))
            else:
                self._failure = ""
                log.warning("rules_restored", table=hostport.TABLE)
            # Whoever deletes rules often does so several times.
            await asyncio.sleep(_PAUSE_S)

    # The rest runs in the network thread.

    def _write_table(self) -> None:
        if self._nft is None:
            raise RuntimeError("rules before start")
        # A copy made in one step: verbs change the dict in the event loop's thread.
        live = [f for held in list(self._forwards.values()) for f in held]
        before = self._written
        # Should others commit in between, ours is a later one, and is taken for a deletion once.
        self._written = nft_events.generation() + 1
        try:
            self._nft.run(hostport.table(self._config.bridge, self._pods, live))
        except BaseException:
            self._written = before
            raise

    def _table_there(self) -> bool:
        try:
            return self._nft is not None and bool(self._nft.run(f"list table {hostport.TABLE}"))
        except AgentError:
            return False

    def _change_rules(self, commands: str) -> None:
        """Apply `commands`; should the table be gone, write it whole, as it has to be now."""
        try:
            if self._nft is not None:
                self._nft.run(commands)
        except AgentError:
            if self._table_there():
                raise
            self._write_table()

    def _start(self) -> None:
        if self._nft is None:
            self._nft = Nftables()
        if self._routes is None:
            self._routes = netlink.RouteSocket()
        routes = self._routes
        self._mtu = self._config.mtu or routes.default_mtu()
        name = self._config.bridge
        routes.send([netlink.bridge(name)], exist_ok=True)
        self._index = netlink.index_of(name) or 0
        for network in self._networks:
            gateway = network[1]
            routes.send([netlink.address(self._index, gateway, network.prefixlen)], exist_ok=True)
        self._switches(name)
        self._write_table()

    def _switches(self, name: str) -> None:
        _sysctl("net/ipv4/ip_forward", "1")
        _sysctl(f"net/ipv4/conf/{name}/route_localnet", "1")
        _sysctl(f"net/ipv4/conf/{name}/send_redirects", "0")
        if any(":" in cidr for cidr in self.cidrs):
            for conf in Path("/proc/sys/net/ipv6/conf").iterdir():
                # Forwarding makes an uplink deaf to router advertisements unless it says 2.
                accept = conf / "accept_ra"
                if conf.name != name and accept.read_text().strip() == "1":
                    accept.write_text("2")
            _sysctl("net/ipv6/conf/all/forwarding", "1")
            _sysctl(f"net/ipv6/conf/{name}/accept_ra", "0")
            _sysctl(f"net/ipv6/conf/{name}/accept_dad", "0")

    def _attach(
        self,
        sandbox_id: str,
        netns: Path,
        networks: Sequence[Network],
        addresses: Sequence[str],
        wanted: Sequence[hostport.Forward],
    ) -> None:
        if self._routes is None or self._nft is None:
            raise RuntimeError("attach before start")
        host = _veth_name(sandbox_id)
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._routes.send([netlink.veth(host, "eth0", self._index, fd, self._mtu)])
        finally:
            os.close(fd)
        # br_netfilter keeps what is redirected to a pod within the bridge: to its own port as well.
        self._routes.send([netlink.hairpin(netlink.index_of(host) or 0)])
        gateways = [network[1] for network in networks]
        namespaces.in_netns(netns, lambda: _configure(addresses, gateways))
        if networks != self._networks:
            self._write_table()  # others came while these addresses were on their way
        if wanted:
            self._change_rules(hostport.add_commands(wanted))

    def _detach(self, sandbox_id: str, gone: Sequence[hostport.Forward]) -> None:
        if gone:
            self._change_rules(hostport.delete_commands(gone))
        index = netlink.index_of(_veth_name(sandbox_id))
        if index is not None and self._routes is not None:
            self._routes.send([netlink.delete_link(index)])

    def _sweep(self, names: set[str]) -> None:
        members = Path(f"/sys/class/net/{self._config.bridge}/brif")
        for entry in members.iterdir() if members.exists() else ():
            if entry.name not in names and entry.name.startswith("cri"):
                index = netlink.index_of(entry.name)
                if index is not None and self._routes is not None:
                    self._routes.send([netlink.delete_link(index)])
                    log.warning("orphan_link_removed", link=entry.name)

    def _retire(self) -> None:
        """Not started, so nobody needs the table any longer, if there is one."""
        if netlink.index_of(self._config.bridge) is not None:
            try:
                with contextlib.closing(Nftables()) as nft:
                    nft.run(hostport.REMOVAL)
            except AgentError as exc:
                log.warning("rules_not_removed", error=str(exc))


def _veth_name(sandbox_id: str) -> str:
    return f"cri{sandbox_id[:11]}"  # 14 characters; IFNAMSIZ leaves 15


def _configure(addresses: Sequence[str], gateways: Sequence[netlink.Address]) -> None:
    index = netlink.index_of("eth0") or 0
    requests = []
    for text in addresses:
        address = ip_address(text)
        requests.append(netlink.address(index, address, address.max_prefixlen))
    requests.append(netlink.set_up(index))
    requests += [netlink.default_route(index, gateway) for gateway in gateways]
    with netlink.RouteSocket() as routes:
        routes.send(requests)


def _sysctl(name: str, value: str) -> None:
    path = Path("/proc/sys") / name
    if path.exists() and path.read_text().strip() != value:
        path.write_text(value)
