# SPDX-License-Identifier: Apache-2.0
"""The directories of CDI specifications: read when a container requests a device, cached while
nothing in them changes.

A device of a later directory hides one of the same name in an earlier directory; two of one name in
one directory are a conflict, and neither is available. A broken file hides nothing: its devices are
missing, and the error of a request for one names the reason.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from criagent.base.errors import InvalidRequestError
from criagent.runtime.spec.cdi.file import FILE_LIMIT, Device, Edits, Spec, SpecError, parse

_FILES_LIMIT = 1000  # of one directory
_SUFFIXES = (".json", ".yaml")
_NAMED = 20  # available devices that an error names

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_Facts = tuple[str, int, int, int]  # path, inode, time of change, size


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CdiDevice:
    """A device that containers can request, and the edits of its specification for all devices."""

    name: str  # "vendor/class=name"
    file: Path
    edits: Edits
    common: Edits


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CdiRegistry:
    """The directories' contents when they were read. `problems` name the file and the cause."""

    devices: Mapping[str, CdiDevice] = dataclasses.field(default_factory=dict)
    problems: tuple[str, ...] = ()


class CdiFolders:
    """Checks the directories at every request, and reads files only after a change.

    New problems are logged, unless `quiet`.
    """

    def __init__(self, folders: Sequence[Path], *, quiet: bool = False) -> None:
        self.folders = tuple(folders)
        self._quiet = quiet
        self._seen: tuple[_Facts, ...] | None = None
        self._registry = CdiRegistry()

    def registry(self) -> CdiRegistry:
        """The devices as of now. Reads files: call it in a thread, from any number of threads."""
        files, problems = self._files()
        seen = tuple(facts for folder in files for facts in folder)
        if seen == self._seen:
            return self._registry
        found = _registry(files, problems)
        self._registry, self._seen = found, seen
        for problem in () if self._quiet else found.problems:
            log.warning("cdi_specification_skipped", problem=problem)
        return found

    def devices(self, names: Sequence[str]) -> tuple[CdiDevice, ...]:
        """The named devices, each once, in the order of the request. Raises InvalidRequestError."""
        registry = self.registry()
        unknown = [name for name in dict.fromkeys(names) if name not in registry.devices]
        if unknown:
            raise InvalidRequestError(self._unknown(unknown, registry))
        return tuple(registry.devices[name] for name in dict.fromkeys(names))

    def _unknown(self, names: Sequence[str], registry: CdiRegistry) -> str:
        if not self.folders:
            return f"CDI device {names[0]}: CDI is off because runtime.cdi_spec_dirs is empty"
        where = ", ".join(str(folder) for folder in self.folders)
        kinds = {name.partition("=")[0] for name in names}
        known = [name for name in registry.devices if name.partition("=")[0] in kinds]
        of_kind = f"; available devices of that kind: {', '.join(known[:_NAMED])}" if known else ""
        broken = (
            f"; unusable files: {'; '.join(registry.problems[:5])}" if registry.problems else ""
        )
        are = "is" if len(names) == 1 else "are"
        return (
            f"CDI device {', '.join(names[:_NAMED])} {are} in no specification in "
            f"{where}{of_kind}{broken}"
        )

    def _files(self) -> tuple[list[list[_Facts]], list[str]]:
        """The files per directory that may be specifications, by name."""
        found: list[list[_Facts]] = []
        problems: list[str] = []
        for folder in self.folders:
            found.append([])
            try:
                names = sorted(entry for entry in os.listdir(folder) if entry.endswith(_SUFFIXES))
            except FileNotFoundError:
                continue
            except OSError as exc:
                problems.append(f"{folder}: {exc.strerror}")
                continue
            if len(names) > _FILES_LIMIT:
                problems.append(f"{folder}: more than {_FILES_LIMIT} files; the rest is ignored")
            for name in names[:_FILES_LIMIT]:
                path = f"{folder}/{name}"
                try:
                    facts = os.stat(path)
                except OSError as exc:
                    problems.append(f"{path}: {exc.strerror}")
                    continue
                if stat.S_ISREG(facts.st_mode):
                    found[-1].append((path, facts.st_ino, facts.st_mtime_ns, facts.st_size))
        return found, problems


def _registry(folders: Sequence[Sequence[_Facts]], problems: list[str]) -> CdiRegistry:
    devices: dict[str, CdiDevice] = {}
    for files in folders:
        here: dict[str, CdiDevice] = {}
        conflicts: set[str] = set()
        for path, _, _, size in files:
            spec = _read(path, size, problems)
            for item in () if spec is None else spec.devices:
                device = _device(Path(path), spec, item) if spec else None
                if device is None:
                    continue
                if (other := here.setdefault(device.name, device)) is not device:
                    problems.append(f"{device.name} is both in {other.file} and in {path}")
                    conflicts.add(device.name)
        devices |= here
        for name in conflicts:
            del devices[name]
    return CdiRegistry(devices=devices, problems=tuple(problems))


def _device(path: Path, spec: Spec, item: Device) -> CdiDevice:
    return CdiDevice(
        name=f"{spec.kind}={item.name}",
        file=path,
        edits=item.container_edits,
        common=spec.container_edits,
    )


def _read(path: str, size: int, problems: list[str]) -> Spec | None:
    if size > FILE_LIMIT:
        problems.append(f"{path}: is larger than {FILE_LIMIT} bytes")
        return None
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_LIMIT + 1)
        if len(data) > FILE_LIMIT:
            raise SpecError(f"is larger than {FILE_LIMIT} bytes")
        return parse(data, yaml=path.endswith(".yaml"))
    except OSError as exc:
        problems.append(f"{path}: {exc.strerror}")
    except SpecError as exc:
        problems.append(f"{path}: {exc}")
    return None
