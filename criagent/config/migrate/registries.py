# SPDX-License-Identifier: Apache-2.0
"""registries.conf of Podman, CRI-O and Skopeo, both versions (man 5 containers-registries.conf)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from criagent.config.migrate.migration import Migration, Where, shown
from criagent.config.migrate.registry import RegistryHosts, Server
from criagent.config.migrate.rules import Rule, apply, below, left

_PATHS = "hosts.toml is for a whole registry, not for a path or a wildcard in it"
_SHORT = left("a name without a registry is one of docker.io")
_REGISTRY_KEYS = frozenset(
    {"prefix", "location", "insecure", "blocked", "mirror", "mirror-by-digest-only"}
)
_MIRROR_KEYS = frozenset({"location", "insecure", "pull-from-mirror"})


def read(migration: Migration, document: Mapping[str, Any], file: Path) -> None:
    """Read one file."""
    apply(migration, _TABLE, document, Where(file, ""))


def _registries(migration: Migration, where: Where, value: Any) -> None:
    for entry in value:
        prefix = str(entry.get("prefix") or entry.get("location") or "")
        at = Where(where.file, f"[[registry]] {shown(prefix)}")
        if "/" in prefix or "*" in prefix or not prefix:
            migration.left(at, _PATHS)
            continue
        for key in sorted(entry.keys() - _REGISTRY_KEYS):
            migration.left(below(at, key), f"{shown(entry[key])}: this version does not know it")
        if entry.get("blocked"):
            migration.left(below(at, "blocked"), "forbid it by a signature policy")
        _registry(migration, at, prefix, entry)


def _registry(migration: Migration, at: Where, prefix: str, entry: Mapping[str, Any]) -> None:
    location = str(entry.get("location") or prefix)
    if location != prefix:
        hosts = migration.registry(at, prefix, f"is pulled from {location}")
        hosts.own = _server(location, insecure=bool(entry.get("insecure")))
    elif entry.get("insecure"):
        migration.registry(at, prefix, "HTTPS is not verified, HTTP allowed").insecure()
    for mirror in entry.get("mirror", []):
        _mirror(migration, at, prefix, mirror, digests=bool(entry.get("mirror-by-digest-only")))


def _mirror(
    migration: Migration, at: Where, prefix: str, entry: Mapping[str, Any], *, digests: bool
) -> None:
    location = str(entry.get("location") or "")
    use = entry.get("pull-from-mirror") or "all"
    for key in sorted(entry.keys() - _MIRROR_KEYS):
        migration.left(below(at, "mirror", key), f"{shown(entry[key])}: this version lacks it")
    if not location or use not in {"all", "digest-only"}:
        migration.left(below(at, "mirror"), f"{shown(location)}: cannot serve {shown(use)}")
        return
    hosts = migration.registry(at, prefix, f"asks {location}")
    insecure = bool(entry.get("insecure"))
    servers = [_server(location, insecure=insecure)]
    if insecure:
        servers.append(replace(servers[0], url=servers[0].url.replace("https:", "http:", 1)))
        servers[1].skip_verify = False
    for server in servers:
        server.digests_only = digests or use == "digest-only"
        _front(hosts, server)


def _front(hosts: RegistryHosts, server: Server) -> None:
    """Add a mirror in front of the registry's own server over HTTPS, which `insecure` adds."""
    own = hosts.server().url.split("://", 1)[1]
    place = next((i for i, m in enumerate(hosts.mirrors) if m.url == f"https://{own}"), None)
    hosts.mirrors.insert(len(hosts.mirrors) if place is None else place, server)


def _server(location: str, *, insecure: bool) -> Server:
    """A path of the location is in front of the repository, behind /v2."""
    host, slash, path = location.partition("/")
    url = f"https://{host}/v2/{path}" if slash else f"https://{host}"
    return Server(url, override_path=bool(slash), skip_verify=insecure)


def _old_insecure(migration: Migration, where: Where, value: Any) -> None:
    for name in value:
        migration.registry(where, str(name), "HTTPS is not verified, HTTP allowed").insecure()


_TABLE: dict[str, Rule] = {
    "registry": _registries,
    "registries/search/registries": _SHORT,
    "registries/insecure/registries": _old_insecure,
    "registries/block/registries": left("forbid it by a signature policy (docs/signatures.md)"),
    "unqualified-search-registries": _SHORT,
    "short-name-mode": _SHORT,
    "aliases/**": _SHORT,
    "credential-helpers": left(
        "name them in the file of registry.docker_config, as credHelpers", ["containers-auth.json"]
    ),
    "additional-layer-store-auth-helper": left("see storage.additional_stores"),
}
