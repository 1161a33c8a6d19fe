# SPDX-License-Identifier: Apache-2.0
"""Docker's daemon.json (man 8 dockerd), for nodes that ran Docker under cri-dockerd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from criagent.config.migrate.defaults import ulimits
from criagent.config.migrate.handlers import handler
from criagent.config.migrate.migration import Migration, Where, shown
from criagent.config.migrate.registry import DOCKER, Server
from criagent.config.migrate.rules import (
    Rule,
    apply,
    below,
    driver,
    left,
    number,
    size_bytes,
    to,
    unneeded,
)

_DNS = unneeded("the kubelet gives each pod its resolver")
_ON = (True,)  # the default of some keys
_CGROUP_DRIVER = "native.cgroupdriver="


def read(migration: Migration, document: Mapping[str, Any], file: Path) -> None:
    """Read one file."""
    apply(migration, _TABLE, document, Where(file, ""))


def _mirrors(migration: Migration, where: Where, value: Any) -> None:
    for url in value:
        hosts = migration.registry(where, DOCKER, f"asks {url}")
        hosts.mirror(Server(str(url).rstrip("/")))


def _insecure(migration: Migration, where: Where, value: Any) -> None:
    for name in value:
        if "/" in str(name):
            migration.left(
                where, f"{shown(name)}: settings are for a host; name the registries of the network"
            )
        else:
            migration.registry(where, str(name), "HTTPS is not verified, HTTP allowed").insecure()


def _exec_options(migration: Migration, where: Where, value: Any) -> None:
    for option in value:
        if str(option).startswith(_CGROUP_DRIVER):
            name = str(option).removeprefix(_CGROUP_DRIVER)
            migration.take(where, "runtime.cgroup_driver", name)
        else:
            migration.left(where, f"{shown(option)}: no such option")


def _storage_options(migration: Migration, where: Where, value: Any) -> None:
    for option in value:
        name, _, setting = str(option).partition("=")
        key, convert = _STORAGE_OPTIONS.get(name, ("", None))
        if key:
            to(key, convert)(migration, where, setting)
        else:
            migration.left(where, f"{shown(option)}: see docs/storage.md for the driver's keys")


_STORAGE_OPTIONS: dict[str, tuple[str, Callable[[Any], object] | None]] = {
    "overlay2.size": ("storage.container_limit_bytes", size_bytes),
    "size": ("storage.container_limit_bytes", size_bytes),
    "zfs.fsname": ("storage.zfs.dataset", str),
    "dm.thinpooldev": ("storage.devmapper.pool", lambda path: str(path).rpartition("/")[2]),
    "dm.basesize": ("storage.devmapper.base_size_bytes", size_bytes),
    "dm.fs": ("storage.devmapper.filesystem", str),
}


def _runtimes(migration: Migration, where: Where, value: Any) -> None:
    for name, entry in value.items():
        at = below(where, name)
        if program := entry.get("path"):
            handler(migration, at, name, str(program), {})
        else:
            migration.left(at, "the agent runs OCI runtimes by their path, not containerd's shims")
        for key in sorted(key for key in entry.keys() - {"path"} if entry[key]):
            migration.left(below(at, key), f"{shown(entry[key])}: set it in the handler")


def _ulimits(migration: Migration, where: Where, value: Any) -> None:
    found = []
    for name, limit in value.items():
        lower = {str(key).lower(): amount for key, amount in limit.items()}
        try:
            soft, hard = number(lower.get("soft")), number(lower.get("hard"))
        except ValueError as error:
            migration.left(below(where, name), f"{shown(limit)}: {error}")
        else:
            found.append((limit, name, soft, hard))
    ulimits(migration, where, found)


def _hosts(migration: Migration, where: Where, _value: object) -> None:
    migration.unneeded(where, "the kubelet is given storage.socket; Docker's API is not served")


_TABLE: dict[str, Rule] = {
    "registry-mirrors": _mirrors,
    "insecure-registries": _insecure,
    "exec-opts": _exec_options,
    "storage-driver": to("storage.driver", driver),
    "storage-opts": _storage_options,
    "data-root": unneeded("the agent has directories of its own: storage.root"),
    "exec-root": unneeded("the agent has directories of its own: storage.run_dir"),
    "live-restore": unneeded("containers always go on when the agent stops"),
    "max-concurrent-downloads": to("registry.max_parallel_blobs", number, 3),
    "max-concurrent-uploads": unneeded("images are not pushed"),
    "max-download-attempts": unneeded("downloads are continued and tried again"),
    "proxies/http-proxy": to("registry.http_proxy"),
    "proxies/https-proxy": to("registry.https_proxy"),
    "proxies/no-proxy": to("registry.no_proxy"),
    "default-runtime": to("runtime.default_handler"),
    "runtimes": _runtimes,
    "default-ulimits": _ulimits,
    "mtu": to("network.mtu", number, 1500),
    "selinux-enabled": lambda m, where, value: m.take(
        where, "runtime.selinux", "auto" if value else "off"
    ),
    "cdi-spec-dirs": to("runtime.cdi_spec_dirs"),
    "metrics-addr": to("telemetry.metrics_address"),
    "log-driver": left("logs are files for the kubelet", "json-file"),
    "log-opts/max-size": left("set containerLogMaxSize of the kubelet"),
    "log-opts/max-file": left("set containerLogMaxFiles of the kubelet"),
    "log-opts/**": left("logs are files for the kubelet"),
    "bip": left("set the cluster's pod CIDR, or network.pod_cidrs"),
    "fixed-cidr": left("set the cluster's pod CIDR, or network.pod_cidrs"),
    "fixed-cidr-v6": left("set the cluster's pod CIDR, or network.pod_cidrs"),
    "default-address-pools": left("set the cluster's pod CIDR, or network.pod_cidrs"),
    "bridge": left("set network.bridge for the built-in network"),
    "dns": _DNS,
    "dns-opts": _DNS,
    "dns-search": _DNS,
    "hosts": _hosts,
    "tls": unneeded("Docker's API is not served"),
    "tlscacert": unneeded("Docker's API is not served"),
    "tlscert": unneeded("Docker's API is not served"),
    "tlskey": unneeded("Docker's API is not served"),
    "tlsverify": unneeded("Docker's API is not served"),
    "debug": left("set --log-level debug in a drop-in of criagent.service"),
    "log-level": left("set --log-level in a drop-in of criagent.service", "info"),
    "cgroup-parent": unneeded("the kubelet names the cgroup of each pod"),
    "default-cgroupns-mode": unneeded("containers have cgroup namespaces of their own"),
    "default-ipc-mode": unneeded("the pod decides"),
    "default-shm-size": to("runtime.defaults.shm_size_bytes", size_bytes, "64M"),
    "init": left("set shareProcessNamespace in pods that need an init process"),
    "init-path": to("runtime.catatonit"),
    "seccomp-profile": left("RuntimeDefault is the agent's own profile; use Localhost profiles"),
    "userns-remap": left("user namespaces are the pods' own (hostUsers: false)"),
    "no-new-privileges": left("set allowPrivilegeEscalation: false in the pods"),
    "icc": left("use NetworkPolicies of the cluster's network", *_ON),
    "ip-forward": unneeded("forwarding is on for the pods' network"),
    "ip-masq": left("pods' traffic to other networks is masqueraded", *_ON),
    "iptables": left("hostPorts and masquerading use nftables", *_ON),
    "ip6tables": left("hostPorts and masquerading use nftables", *_ON),
    "ipv6": left("see network.pod_cidrs for an IPv6 range"),
    "userland-proxy": unneeded("hostPorts have no proxy process"),
    "group": left("the socket belongs to root"),
    "oom-score-adjust": left("set OOMScoreAdjust= in a drop-in of criagent.service", 0),
    "shutdown-timeout": unneeded("containers go on when the agent stops"),
    "experimental": unneeded("features of Docker's own"),
    "features/**": unneeded("features of Docker's own"),
    "builder/**": unneeded("images are not built"),
    "labels": unneeded("the kubelet labels nodes"),
}
