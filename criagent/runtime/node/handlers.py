"""The OCI runtime handlers: version and features of each program, read once at start."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from criagent.base.errors import InvalidRequestError
from criagent.kernel.mount import has_recursive_attributes
from criagent.process.child import run
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


async def probe(name: str, path: Path, kind: str, *, limit_s: float = _LIMIT_S) -> HandlerFacts:
    """Version and features of the program at `path`; never fails, but reports a problem."""
    facts = HandlerFacts(name=name, path=path, type=kind)
    try:
        version = await _answer(path, "--version", limit_s)
    except OSError as exc:
        return dataclasses.replace(facts, problem=_no_answer(path, kind, exc))
    if problem := too_old(kind, version):
        problem = f"{path}: {problem}; install a newer one and restart criagent"
        return dataclasses.replace(facts, problem=problem)
    match = _VERSION.search(version)
    options: set[str] = set()
    linux: dict[str, Any] = {}
    try:
        features = json.loads(await _answer(path, "features", limit_s))
        options = set(features.get("mountOptions") or ())
        linux = dict(features.get("linux") or {})
    except (OSError, ValueError, AttributeError):
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


async def monitor_problem(path: Path, *, limit_s: float = _LIMIT_S) -> str:
    """Why conmon at `path` cannot be used; "" = it can. Read once at start."""
    try:
        problem = too_old("conmon", await _answer(path, "--version", limit_s))
    except OSError as exc:
        return _no_answer(path, "conmon", exc)
    return f"{path}: {problem}; install a newer one and restart criagent" if problem else ""


def check_image_handler(name: str, handlers: Collection[str]) -> None:
    """Raises InvalidRequestError for an image requested for an unknown handler."""
    if name and name not in handlers:
        raise InvalidRequestError(
            f"image.runtime_handler {name[:80]!r} is not configured; handlers: "
            f"{', '.join(sorted(handlers))}"
        )


async def _answer(path: Path, question: str, limit_s: float) -> str:
    """Output of the program for one argument. Raises OSError, TimeoutError."""
    return (await run([path, question], limit_s=limit_s)).output


def _no_answer(path: Path, package: str, failure: OSError) -> str:
    if isinstance(failure, TimeoutError):
        return f"{path} --version does not end; install another build and restart criagent"
    return f"{path} cannot be run: {failure.strerror}; install {package} and restart criagent"
