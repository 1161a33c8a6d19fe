# SPDX-License-Identifier: Apache-2.0
"""Pod network: nftables and forwarding, or the CNI configuration and its plugins."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from criagent.base.errors import AgentError
from criagent.config.sections import Config
from criagent.doctor.finding import Finding, content, error, fine, listens, warning
from criagent.doctor.programs import answer_of
from criagent.kernel.nftables import Nftables
from criagent.net import rules
from criagent.net.cni.config import CniConfigError, find_plugin, load_first
from criagent.runtime.node.facts import held_capabilities
from criagent.runtime.node.minimum_versions import FLOORS, below_floor, dotted, parse_version

_FORWARDING = {
    4: "/proc/sys/net/ipv4/ip_forward",
    6: "/proc/sys/net/ipv6/conf/all/forwarding",
}
_BRIDGED = "/proc/sys/net/bridge/bridge-nf-call-iptables"
_DROPS = re.compile(r"hook forward priority [^;]*; policy drop;")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """Contents of kernel files ("" = missing), and what was found for the configured backend."""

    forward4: str = "1"
    forward6: str = "1"
    serving: bool = False  # whether the agent runs, which switches forwarding on when it starts
    bridged: str = "1"  # whether bridged packets pass through iptables
    nftables_problem: str = ""
    antispoof_problem: str = ""  # the kernel's error for the anti-spoofing rules
    forward_dropped: bool = False
    cni_file: str = ""  # a file in the configuration directory
    cni_name: str = ""
    cni_problem: str = ""
    cni_plugins: tuple[tuple[str, str], ...] = ()  # (path, output of --version)


def read(config: Config) -> NetworkFacts:
    """Inspect this node."""
    builtin = config.network.backend == "builtin"
    problem, chains = _chains() if builtin else ("", "")
    files = _files(config.network.cni_conf_dir)
    name, cni_problem, plugins = ("", "", ()) if builtin else _cni(config)
    return NetworkFacts(
        forward4=content(_FORWARDING[4]),
        forward6=content(_FORWARDING[6]),
        serving=listens(str(config.storage.socket)),
        bridged=content(_BRIDGED),
        nftables_problem=problem,
        antispoof_problem=_antispoof_problem() if builtin and not problem else "",
        forward_dropped=bool(_DROPS.search(chains)),
        cni_file=str(files[0]) if files else "",
        cni_name=name,
        cni_problem=cni_problem,
        cni_plugins=plugins,
    )


def judge(facts: NetworkFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    if config.network.backend == "builtin":
        yield from _judge_builtin(facts, config)
    else:
        yield from _judge_cni(facts)


def _judge_builtin(facts: NetworkFacts, config: Config) -> Iterator[Finding]:
    if facts.nftables_problem:
        yield error(
            "nftables",
            facts.nftables_problem,
            "install libnftables1, run as root, and load the module (modprobe nf_tables)",
        )
    else:
        yield fine("nftables", "libnftables works")
    yield from _anti_spoofing(facts, config)
    yield _forwarding(facts, config)
    if facts.forward_dropped:
        yield warning(
            "firewall",
            "a forward chain drops unknown traffic: pods may not reach other nodes",
            "accept the pod networks there (Docker: iptables -P FORWARD ACCEPT; firewalld: put "
            f"{config.network.bridge} into the trusted zone)",
        )
    if facts.cni_file:
        yield warning(
            "CNI",
            f"{facts.cni_file} is ignored: network.backend is builtin",
            'set network.backend = "cni", or remove the file',
        )


def _anti_spoofing(facts: NetworkFacts, config: Config) -> Iterator[Finding]:
    name = "anti-spoofing"
    if not config.network.anti_spoofing:
        yield fine(name, "off (network.anti_spoofing = false): pods can use any address")
    elif facts.antispoof_problem:
        yield warning(
            name,
            f"pods can use addresses of other pods: {facts.antispoof_problem}",
            "use a kernel with nftables for bridges (CONFIG_NF_TABLES_BRIDGE), or set "
            "network.anti_spoofing = false",
        )
    elif not facts.nftables_problem:
        yield fine(name, "pods cannot use addresses of other pods")


def _forwarding(facts: NetworkFacts, config: Config) -> Finding:
    name = "forwarding"
    families = {6 if ":" in cidr else 4 for cidr in config.network.pod_cidrs}
    values = {4: facts.forward4, 6: facts.forward6}
    unknown = sorted(family for family in families if not values[family])
    if unknown:
        return error(
            name,
            f"the kernel has no IPv{unknown[0]}, but network.pod_cidrs contains a network "
            "of that family",
            "remove that network from network.pod_cidrs, or enable the protocol",
        )
    off = sorted(family for family in families if values[family] == "0")
    text = f"off for {' and '.join(f'IPv{family}' for family in off)}"
    if off and facts.serving:
        return warning(
            name,
            f"{text}: another program has switched it off, and pods reach only pods of this node",
            "systemctl restart criagent, which switches it on; find the program (sysctl.d, a "
            "firewall)",
        )
    if off:
        return fine(name, f"{text}; `criagent serve` switches it on")
    return fine(name, "on")


def _judge_cni(facts: NetworkFacts) -> Iterator[Finding]:
    if facts.forward4 == "0":
        yield warning(
            "forwarding",
            "off for IPv4; most CNI networks need it",
            "sysctl -w net.ipv4.ip_forward=1; add the same to /etc/sysctl.d/",
        )
    else:
        yield fine("forwarding", "on")
    if facts.bridged == "1":
        yield fine("br_netfilter", "bridged packets pass through iptables")
    else:
        there = "off" if facts.bridged else "not loaded"
        yield warning(
            "br_netfilter",
            f"{there}: on a bridge network, a Service does not answer if its pod is on the "
            "same node",
            "modprobe br_netfilter; sysctl -w net.bridge.bridge-nf-call-iptables=1; add the "
            "same to /etc/modules-load.d/ and /etc/sysctl.d/",
        )
    if facts.cni_problem:
        yield error(
            "CNI",
            facts.cni_problem,
            "install a CNI network or correct the file; the agent notices the change by itself",
        )
        return
    for path, answer in facts.cni_plugins:
        # "CNI bridge plugin v1.9.0"; the next line lists versions of the protocol
        version = parse_version(answer.partition("\n")[0])
        if version is not None and below_floor(version, FLOORS["cni"]):
            yield warning(
                "CNI",
                f"{path} {dotted(version)} has known security problems",
                f"update the CNI plugins to {FLOORS['cni'][0]} or newer",
            )
    yield fine("CNI", f'network "{facts.cni_name}"')


def _chains() -> tuple[str, str]:
    """(why nftables does not work, its chains)."""
    if "CAP_NET_ADMIN" not in held_capabilities():  # the library would print on stderr
        return "CAP_NET_ADMIN is missing: the rules cannot be read", ""
    try:
        nft = Nftables()
        try:
            return "", nft.run("list chains")
        finally:
            nft.close()
    except AgentError as exc:
        return str(exc), ""


def _antispoof_problem() -> str:
    """Why the kernel rejects the rules; "" when it accepts them. Nothing is changed."""
    try:
        with contextlib.closing(Nftables(dry_run=True)) as nft:
            nft.run(rules.antispoof_text())
    except AgentError as exc:
        return str(exc)
    return ""


def _files(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_file())
    except OSError:
        return []


def _cni(config: Config) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    """(name of the network, its problem, its plugins)."""
    section = config.network
    try:
        network = load_first(section.cni_conf_dir)
        paths = [find_plugin(p["type"], section.cni_bin_dirs) for p in network.plugins]
    except CniConfigError as exc:
        return "", str(exc), ()
    return network.name, "", tuple((str(path), answer_of(path) or "") for path in paths)
