# SPDX-License-Identifier: Apache-2.0
"""The hosts.toml of a registry that a migration writes (containerd's docs/hosts.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

DOCKER = "docker.io"
EVERY = "_default"  # the directory of registries that have none
_DOCKER_SERVER = "registry-1.docker.io"


@dataclass(slots=True)
class Server:
    """One server of a registry; `url` has its scheme."""

    url: str
    digests_only: bool = False  # it is not asked what a tag means
    override_path: bool = False  # its path is not below /v2
    skip_verify: bool = False
    ca: str = ""
    client: tuple[str, str] = ("", "")  # certificate and key
    headers: dict[str, list[str]] = field(default_factory=dict)

    def lines(self, *, mirror: bool) -> list[str]:
        """Its keys in TOML."""
        lines = []
        if mirror:
            asked = ["pull"] if self.digests_only else ["pull", "resolve"]
            lines.append(f"capabilities = {json.dumps(asked)}")
        if self.override_path:
            lines.append("override_path = true")
        if self.skip_verify:
            lines.append("skip_verify = true")
        if self.ca:
            lines.append(f"ca = {json.dumps(self.ca)}")
        if any(self.client):
            lines.append(f"client = [{json.dumps(list(self.client))}]")
        for name, values in self.headers.items():
            lines.append(f"header.{json.dumps(name)} = {json.dumps(values)}")
        return lines


@dataclass(slots=True)
class RegistryHosts:
    """The mirrors of a registry in the order in which they are asked, then its own server."""

    name: str
    mirrors: list[Server] = field(default_factory=list)
    own: Server | None = None

    def server(self) -> Server:
        """The registry's own server."""
        if self.own is None:
            host = _DOCKER_SERVER if self.name == DOCKER else self.name
            self.own = Server(f"https://{host}")
        return self.own

    def mirror(self, server: Server) -> None:
        """Ask another server first; one that is there already stays as it is."""
        if all(known.url != server.url for known in self.mirrors):
            self.mirrors.append(server)

    def insecure(self) -> None:
        """As Docker and CRI-O: HTTPS with any certificate, else plain HTTP."""
        host = self.server().url.split("://", 1)[1]
        self.server().url = f"http://{host}"
        self.mirror(Server(f"https://{host}", skip_verify=True))

    def directory(self) -> str:
        """Name of its directory; a colon would be taken for a list by some tools."""
        host, colon, port = self.name.rpartition(":")
        return f"{host}_{port}_" if colon else self.name

    def text(self) -> str:
        """The file hosts.toml."""
        lines = []
        if self.name != EVERY:  # there, each registry's own server comes last
            own = self.server()
            lines = [f"server = {json.dumps(own.url)}", *own.lines(mirror=False)]
        for mirror in self.mirrors:
            lines += ["", f"[host.{json.dumps(mirror.url)}]"]
            lines += [f"  {line}" for line in mirror.lines(mirror=True)]
        return "\n".join([*lines, ""])
