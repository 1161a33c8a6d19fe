# SPDX-License-Identifier: Apache-2.0
"""registries.conf of Podman, CRI-O and Skopeo, both versions (man 5 containers-registries.conf)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from criagent.config import registries_conf
from criagent.config.migrate.migration import Migration, Where, shown
from criagent.config.migrate.registry import RegistryHosts, Server
from criagent.config.migrate.rules import Rule, apply, below, left
from criagent.config.registries_conf import Mirror, Registry

_ALTERNATIVE = "or set registry.registries_conf, which reads the file as it stands"
_PATHS = f"hosts.toml is for a whole registry, not for a path or a wildcard in it; {_ALTERNATIVE}"
_BLOCKED = f"forbid it by a signature policy, {_ALTERNATIVE}"
_SHORT = left(f"a name without a registry is one of docker.io; {_ALTERNATIVE}")


def read(migration: Migration, document: Mapping[str, Any], file: Path) -> None:
    """Read one file."""
    apply(migration, _TABLE, document, Where(file, ""))


def _registries(migration: Migration, where: Where, value: Any) -> None:
    for entry in value:
        name = str(entry.get("prefix") or entry.get("location") or "")
        at = Where(where.file, f"[[registry]] {shown(name)}")
        try:
            registry = registries_conf.registry(entry)
        except ValueError as error:
            migration.left(at, str(error))
            continue
        if "/" in registry.prefix or "*" in registry.prefix:
            migration.left(at, _PATHS)
            continue
        for key in sorted(entry.keys() - registries_conf.REGISTRY_KEYS):
            migration.left(below(at, key), f"{shown(entry[key])}: this version does not know it")
        for mirror in entry.get("mirror", []):
            for key in sorted(mirror.keys() - registries_conf.MIRROR_KEYS):
                text = f"{shown(mirror[key])}: this version lacks it"
                migration.left(below(at, "mirror", key), text)
        if registry.blocked:
            migration.left(below(at, "blocked"), _BLOCKED)
        _registry(migration, at, registry)


def _registry(migration: Migration, at: Where, registry: Registry) -> None:
    prefix = registry.prefix
    if registry.location:
        hosts = migration.registry(at, prefix, f"is pulled from {registry.location}")
        hosts.own = _server(registry.location, insecure=registry.insecure)
    elif registry.insecure:
        migration.registry(at, prefix, "HTTPS is not verified, HTTP allowed").insecure()
    for mirror in registry.mirrors:
        _mirror(migration, at, prefix, mirror)


def _mirror(migration: Migration, at: Where, prefix: str, mirror: Mirror) -> None:
    if mirror.use == "tag-only":
        text = f"{shown(mirror.location)}: cannot serve {shown(mirror.use)}, {_ALTERNATIVE}"
        migration.left(below(at, "mirror"), text)
        return
    hosts = migration.registry(at, prefix, f"asks {mirror.location}")
    servers = [_server(mirror.location, insecure=mirror.insecure)]
    if mirror.insecure:
        servers.append(replace(servers[0], url=servers[0].url.replace("https:", "http:", 1)))
        servers[1].skip_verify = False
    for server in servers:
        server.digests_only = mirror.use == "digest-only"
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
    "registries/block/registries": left(_BLOCKED),
    "unqualified-search-registries": _SHORT,
    "short-name-mode": _SHORT,
    "aliases/**": _SHORT,
    "credential-helpers": left(
        f"name them in the file of registry.docker_config, as credHelpers, {_ALTERNATIVE}",
        [registries_conf.AUTH_FILES],
    ),
    "additional-layer-store-auth-helper": left("see storage.additional_stores"),
}
