"""CNI network configurations (CNI specification 1.1.0, section 1), parsed with limits."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from criagent.errors import AgentError

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
_SUFFIXES = {".conflist", ".conf", ".json"}
_LIMIT = 1 << 20
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

Json = dict[str, Any]


class CniConfigError(AgentError):
    """A configuration cannot be used; the text names the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkList:
    """A network configuration list. `document` is what a sandbox's row keeps."""

    name: str
    version: str
    plugins: tuple[Json, ...]

    @property
    def document(self) -> Json:
        """The list as JSON."""
        return {"name": self.name, "cniVersion": self.version, "plugins": list(self.plugins)}


def load_first(directory: Path) -> NetworkList:
    """The first configuration of `directory` in name order, as kubelets and runtimes choose it.

    Raises CniConfigError when there is none, or the first one is broken.
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
        with file.open("rb") as stream:
            data = stream.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            raise CniConfigError(f"{file} is larger than {_LIMIT} bytes")
        document = json.loads(data)
    except (OSError, ValueError, RecursionError) as exc:
        raise CniConfigError(f"{file} is no JSON: {exc}") from None
    if not isinstance(document, dict):
        raise CniConfigError(f"{file} is no JSON object")
    if "plugins" not in document:
        document = {**document, "plugins": [document]}
    return parse(document, str(file))


def parse(document: Json, source: str) -> NetworkList:
    """`document` as a list. Raises CniConfigError naming `source`."""
    name, plugins = document.get("name"), document.get("plugins")
    version = document.get("cniVersion", "0.3.1")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise CniConfigError(f"{source}: the network's name {name!r} is missing or invalid")
    if version not in VERSIONS:
        raise CniConfigError(f"{source}: cniVersion {version!r} is not one of {list(VERSIONS)}")
    if not isinstance(plugins, list) or not plugins:
        raise CniConfigError(f"{source}: it has no plugins")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        # A type with a slash would run any program of the host (CVE-2021-20206).
        if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
            raise CniConfigError(f"{source}: the plugin type {kind!r} is missing or invalid")
    return NetworkList(name=name, version=version, plugins=tuple(plugins))


def find_plugin(kind: str, directories: Sequence[Path]) -> Path:
    """The plugin's program. Raises CniConfigError naming the directories."""
    for directory in directories:
        path = directory / kind
        if path.is_file():
            return path
    places = ", ".join(str(directory) for directory in directories)
    raise CniConfigError(f'CNI plugin "{kind}" is not in {places}; install it')
