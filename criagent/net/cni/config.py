# SPDX-License-Identifier: Apache-2.0
"""CNI network configurations (CNI specification 1.1.0, section 1), parsed with limits."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from criagent.base.errors import AgentError

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_DEFAULT_VERSION = "0.3.1"
_SUFFIXES = {".conflist", ".conf", ".json"}
_LIMIT = 1 << 20
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Json = dict[str, Any]


class CniConfigError(AgentError):
    """A configuration cannot be used; the text names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkList:
    """A network configuration list. `document` is what a sandbox's row stores."""

    name: str
    version: str
    plugins: tuple[Json, ...]
    disable_gc: bool = False

    @property
    def document(self) -> Json:
        """The list as JSON."""
        return {
            "name": self.name,
            "cniVersion": self.version,
            "plugins": list(self.plugins),
            "disableGC": self.disable_gc,
        }

    def knows(self, command: str) -> bool:
        """Whether plugins of this list support `command`."""
        match command:
            case "GC":
                return self.version >= "1.1.0" and not self.disable_gc
            case "STATUS":
                return self.version >= "1.1.0"
            case _:
                return True

    @property
    def keeps_result_for_del(self) -> bool:
        """Whether DEL gets the result of ADD as prevResult."""
        return self.version >= "0.4.0"


def load_first(directory: Path) -> NetworkList:
    """The first configuration of `directory` in name order, as other runtimes choose it.

    Raises CniConfigError when there is none, or when the first one is broken: skipping it would put
    pods on a network other than the intended one.
    """
    try:
        files = sorted(p for p in directory.iterdir() if p.suffix in _SUFFIXES)
    except OSError:
        files = []
    if not files:
        raise CniConfigError(f"no network configuration in {directory}; install a CNI network")
    return load(files[0])


def load(file: Path) -> NetworkList:
    """The list or single configuration in `file`. Raises CniConfigError."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise CniConfigError(f"{file} is not a regular file")
        with file.open("rb") as stream:
            data = stream.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise CniConfigError(f"{file} is larger than {_LIMIT} bytes")
        document = json.loads(data)
    except OSError as exc:
        raise CniConfigError(f"{file} cannot be read: {exc.strerror}") from None
    except (ValueError, RecursionError) as exc:
        raise CniConfigError(f"{file} is not valid JSON: {exc}") from None
    if not isinstance(document, dict):
        raise CniConfigError(f"{file} is not a JSON object")
    if "plugins" not in document:
        document = {**document, "plugins": [document]}
    return parse(document, str(file))


def parse(document: Json, source: str) -> NetworkList:
    """`document` as a list. Raises CniConfigError naming `source`."""
    name, plugins = document.get("name"), document.get("plugins")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CniConfigError(f"{source}: the network name {str(name)[:80]!r} is missing or invalid")
    version = _version(document, source)
    if not isinstance(plugins, list) or not plugins:
        raise CniConfigError(f"{source}: the list of plugins is missing or empty")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        # A type with a slash would run any program of the host (CVE-2021-20206).
        if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
            raise CniConfigError(
                f"{source}: the plugin type {str(kind)[:80]!r} is missing or invalid"
            )
        ipam = plugin.get("ipam")
        kind = ipam.get("type", "none") if isinstance(ipam, dict) else "none"
        if not isinstance(kind, str) or (kind and not _TYPE.fullmatch(kind)):
            raise CniConfigError(f"{source}: the ipam type {str(kind)[:80]!r} is invalid")
    return NetworkList(
        name=name,
        version=version,
        plugins=tuple(plugins),
        disable_gc=document.get("disableGC") in (True, "true"),
    )


def _version(document: Json, source: str) -> str:
    """The highest version of `cniVersion` and `cniVersions` that is supported here."""
    offered = document.get("cniVersions", [])
    if not isinstance(offered, list):
        raise CniConfigError(f"{source}: cniVersions is not a list")
    # Without one it is 0.1.0 by the specification; plugins that support that support this too.
    version = document.get("cniVersion", "") or ("" if offered else _DEFAULT_VERSION)
    if version:
        offered = [*offered, version]
    known = [version for version in VERSIONS if version in offered]
    if not known:
        raise CniConfigError(
            f"{source}: cniVersion {str(offered)[:80]} is not one of {list(VERSIONS)}"
        )
    return known[-1]


def find_plugin(kind: str, directories: Sequence[Path]) -> Path:
    """The plugin's program. Raises CniConfigError naming the directories."""
    for directory in directories:
        path = directory / kind
        if path.is_file():
            return path
    places = ", ".join(str(directory) for directory in directories)
    raise CniConfigError(f'CNI plugin "{kind}" is not in {places}; install it')
