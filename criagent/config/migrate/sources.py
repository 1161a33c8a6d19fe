# SPDX-License-Identifier: Apache-2.0
"""The files to migrate: which program's they are, and the files that belong to them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from criagent.config.migrate import containerd, crio, docker, registries, storage_conf
from criagent.config.migrate.migration import Migration

Reader = Callable[[Migration, Mapping[str, Any], Path], None]

READERS: Mapping[str, Reader] = {
    "containerd": containerd.read,
    "crio": crio.read,
    "docker": docker.read,
    "registries": registries.read,
    "storage": storage_conf.read,
}
DEFAULT_FILES = (
    Path("/etc/containerd/config.toml"),
    Path("/etc/crio/crio.conf"),
    Path("/etc/containers/registries.conf"),
    Path("/etc/containers/storage.conf"),
    Path("/etc/docker/daemon.json"),
)
_MOST = 1 << 20  # bytes of a configuration


class SourceError(Exception):
    """A file cannot be migrated; the text names it and the reason."""


def migrated(files: Sequence[Path], kind: str = "") -> Migration:
    """What the files say, each with those that belong to it: drop-ins and imports.

    `kind` is one of READERS, or "" to find it out from each file. Raises SourceError for a file
    that cannot be read, or of which no kind is known.
    """
    migration = Migration()
    for file in files:
        for part, document in _parts(file, kind):
            READERS[kind or _kind(part, document)](migration, document, part)
    migration.settle()
    return migration


def _parts(file: Path, kind: str) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The winning file first: the drop-ins from the last to the first, then the file itself."""
    folder = file.parent / f"{file.name}.d"
    drop_ins = sorted(folder.glob("*.conf"), reverse=True) if folder.is_dir() else []
    if not file.exists() and drop_ins:
        yield from ((part, _document(part)) for part in drop_ins)
        return
    document = _document(file)
    if (kind or _kind(file, document)) == "containerd":
        drop_ins = list(reversed(_imports(file, document)))
    yield from ((part, _document(part)) for part in drop_ins)
    yield file, document


def _imports(file: Path, document: Mapping[str, Any]) -> list[Path]:
    """containerd's imports: patterns, relative ones beside the file; those of imports as well."""
    found: list[Path] = []
    pending = [(file, document)]
    while pending:
        importer, its = pending.pop()
        for pattern in its.get("imports", []):
            for name in sorted(glob(str(importer.parent / str(pattern)))):
                path = Path(name)
                if path != file and path not in found:
                    found.append(path)
                    pending.append((path, _document(path)))
    return found


def _document(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST + 1)
        if len(data) > _MOST:
            raise SourceError(f"{file}: is larger than {_MOST} bytes")
        text = data.decode()
        document = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except OSError as error:
        raise SourceError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of both parsers, and of the decoding
        raise SourceError(f"{file}: {error}") from None
    return dict(document)


def _kind(file: Path, document: Mapping[str, Any]) -> str:
    keys = document.keys()
    if "crio" in keys:
        return "crio"
    if "storage" in keys:
        return "storage"
    if keys & {"registry", "registries", "unqualified-search-registries", "aliases"}:
        return "registries"
    if file.suffix == ".json":
        return "docker"
    if keys & {"version", "plugins", "grpc", "imports", "disabled_plugins"}:
        return "containerd"
    if file.name.startswith("registries"):
        return "registries"  # a file of comments only, as distributions install it
    names = ", ".join(READERS)
    raise SourceError(f"{file}: has no keys that are known; name its kind: --kind {names}")
