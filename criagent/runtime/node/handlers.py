"""The OCI runtime handlers: version and features of each program, read once at start."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from criagent.base.errors import InvalidRequestError
from criagent.kernel.mount import has_recursive_attributes
from criagent.process.child import PipeReader, killed_on_exit, spawn
from criagent.runtime.node.minimum_versions import insecure, too_old

_LIMIT_S = 10.0
_VERSION = re.compile(r"version[: ]+v?([0-9]+\.[0-9]+(?:\.[0-9]+)?\S*)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandlerFacts:
    """One configured handler. `problem` is why it cannot be used, "" = it can."""

    name: str
    path: Path
    type: str
    version: str = ""
    recursive_read_only: bool = False
    net_devices: bool = False
    intel_rdt: bool = False
    intel_rdt_schemata: bool = False
    idmapped_mounts: bool = False
    userns_problem: str = (
        "not probed yet"  # why pods with a user namespace cannot run, "" = they can
    )
    insecure: str = ""  # known security problems of the program and the cure, "" = none
    problem: str = ""

    @property
    def user_namespaces(self) -> bool:
        """Whether pods with user namespaces can run."""
        return not self.problem and not self.userns_problem


async def probe(name: str, path: Path, kind: str) -> HandlerFacts:
    """Version and features of the program at `path`; never fails, but reports a problem."""
    facts = HandlerFacts(name=name, path=path, type=kind)
    try:
        version = await output_of([path, "--version"])
    except OSError as exc:
        problem = f"{path} cannot be run: {exc.strerror}; install {kind} and restart criagent"
        return dataclasses.replace(facts, problem=problem)
    except TimeoutError:
        return dataclasses.replace(
            facts,
            problem=f"{path} --version does not end; install another build and restart criagent",
        )
    if problem := too_old(kind, version):
        problem = f"{path}: {problem}; install a newer one and restart criagent"
        return dataclasses.replace(facts, problem=problem)
    match = _VERSION.search(version)
    options: set[str] = set()
    linux: dict[str, Any] = {}
    try:
        features = json.loads(await output_of([path, "features"]))
        options = set(features.get("mountOptions") or ())
        linux = dict(features.get("linux") or {})
    except (OSError, TimeoutError, ValueError, AttributeError):
        pass  # an older runtime without the subcommand has none of them
    return dataclasses.replace(
        facts,
        version=match[1] if match else "",
        insecure=insecure(kind, version),
        recursive_read_only="rro" in options and has_recursive_attributes(),
        net_devices=_has(linux, "netDevices", "enabled"),
        intel_rdt=_has(linux, "intelRdt", "enabled"),
        intel_rdt_schemata=_has(linux, "intelRdt", "schemata"),
        idmapped_mounts=_has(linux, "mountExtensions", "idmap", "enabled"),
        userns_problem=""
        if "user" in (linux.get("namespaces") or ())
        else f"{path} features reports no user namespaces",
    )


def _has(features: dict[str, Any], *path: str) -> bool:
    """Whether `linux.PATH` of the features is true (OCI runtime specification, features)."""
    found: object = features
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found is True


async def monitor_problem(path: Path) -> str:
    """Why conmon at `path` cannot be used; "" = it can. Read once at start."""
    try:
        problem = too_old("conmon", await output_of([path, "--version"]))
    except OSError as exc:
        return f"{path} cannot be run: {exc.strerror}; install conmon and restart criagent"
    except TimeoutError:
        return f"{path} --version does not end; install another build and restart criagent"
    return f"{path}: {problem}; install a newer one and restart criagent" if problem else ""


def check_image_handler(name: str, handlers: Collection[str]) -> None:
    """Raises InvalidRequestError for an image requested for an unknown handler."""
    if name and name not in handlers:
        raise InvalidRequestError(
            f"image.runtime_handler {name[:80]!r} is not configured; handlers: "
            f"{', '.join(sorted(handlers))}"
        )


async def output_of(command: list[str | Path]) -> str:
    """Standard output of a short command. Raises OSError, TimeoutError."""
    read, write = os.pipe()
    reader = PipeReader(read, limit=1 << 20)
    try:
        try:
            child = spawn(command, stdout=write)
        finally:
            os.close(write)
        async with killed_on_exit(child), asyncio.timeout(_LIMIT_S):
            await child.wait()
            await reader.ended()
    finally:
        reader.close()
    return bytes(reader.data).decode(errors="replace")
