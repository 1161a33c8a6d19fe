# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime handlers: version and features of each program, read once at start.

`Handlers` chooses a pod's handler; `HandlerFacts.require_…` refuses what that handler cannot do.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from criagent.base.errors import InvalidRequestError, UnsupportedError, WrongStateError
from criagent.kernel.mount import has_recursive_attributes
from criagent.model.common import NamespaceMode
from criagent.process.child import run
from criagent.runtime.node.annotations import PassedAnnotations
from criagent.runtime.node.criu import checkpoint_problem, restore_problem
from criagent.runtime.node.minimum_versions import another_program, insecure, nameless, too_old

if TYPE_CHECKING:
    from criagent.config.defaults.base_spec import BaseSpec

_LIMIT_S = 10.0
_VERSION = re.compile(r"version[: ]+(?:release-)?v?([0-9]+\.[0-9]+(?:\.[0-9]+)?\S*)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandlerFacts:
    """One configured handler. `problem` is why it cannot be used, "" = it can."""

    name: str
    path: Path
    type: str = ""  # of the configuration
    version: str = ""
    recursive_read_only: bool = False
    net_devices: bool = False
    intel_rdt: bool = False
    intel_rdt_schemata: bool = False
    memory_policy: bool = False
    idmapped_mounts: bool = False  # it maps the ids of a mount itself
    own_kernel: bool = False  # each container has one: they share the network and files, no more
    host_devices: bool = True  # privileged containers get the node's devices
    all_devices: bool = False  # privileged containers may open every device
    annotations: PassedAnnotations = dataclasses.field(default_factory=PassedAnnotations)
    allowed_annotations: frozenset[str] = frozenset()  # of pods, that the agent obeys
    base: BaseSpec | None = None  # parts that every container gets
    min_memory_bytes: int = 0  # the lowest memory limit of a container, 0 = any
    userns_problem: str = (
        "not probed yet"  # why pods with a user namespace cannot run, "" = they can
    )
    checkpoint_problem: str = (
        "not probed yet"  # why containers cannot be checkpointed, "" = they can
    )
    insecure: str = ""  # known security problems of the program and the cure, "" = none
    problem: str = ""

    @property
    def user_namespaces(self) -> bool:
        """Whether pods with user namespaces can run."""
        return not self.problem and not self.userns_problem

    def require_memory(self, container: str, limit: int) -> None:
        """Raises InvalidRequestError for a limit of memory in bytes with which the container could
        not even start; 0 and below is no limit.
        """
        if 0 < limit < self.min_memory_bytes:
            raise InvalidRequestError(
                f'container "{container[:80]}": the memory limit of {limit} bytes is below the '
                f'{self.min_memory_bytes} that runtime handler "{self.name}" needs; raise '
                "resources.limits.memory of the container, or lower "
                f"runtime.handlers.{self.name}.min_memory_bytes"
            )

    def require_user_namespaces(self) -> None:
        """Raises UnsupportedError when no pod can have a user namespace."""
        if self.userns_problem:
            raise UnsupportedError(
                f'runtime handler "{self.name}" cannot run pods with user namespaces on this node: '
                f"{self.userns_problem}"
            )

    def require_namespaces(self, *modes: NamespaceMode) -> None:
        """Raises UnsupportedError when containers cannot see each other's processes, or the node's,
        as these modes of PID and IPC namespaces want.
        """
        if self.own_kernel and not {NamespaceMode.CONTAINER, NamespaceMode.POD}.issuperset(modes):
            raise UnsupportedError(
                f'runtime handler "{self.name}" gives each container a kernel of its own, which '
                "cannot share processes with the node or another container (hostPID, hostIPC, "
                "kubectl debug --target); use another RuntimeClass"
            )

    def require_checkpoints(self) -> None:
        """Raises UnsupportedError when containers cannot be checkpointed."""
        if self.checkpoint_problem:
            raise UnsupportedError(
                f'runtime handler "{self.name}" cannot checkpoint containers on this node: '
                f"{self.checkpoint_problem}"
            )

    def require_restores(self) -> None:
        """Raises UnsupportedError when checkpoints cannot be restored."""
        self.require_checkpoints()
        if problem := restore_problem(self.type, self.version):
            raise UnsupportedError(
                f'runtime handler "{self.name}" cannot restore pods on this node: {problem}'
            )

    def require_recursive_read_only(self, container_path: str) -> None:
        """Raises UnsupportedError when it cannot make whole mount trees read-only."""
        if not self.recursive_read_only:
            raise UnsupportedError(
                f"RROUnsupported: mount {container_path[:200]}: recursive read-only mounts need "
                f'mount_setattr(2) and an OCI runtime that knows "rro"; handler "{self.name}" does '
                "not offer both"
            )


class Handlers:
    """The configured handlers with their monitor, conmon at the path `monitor`."""

    def __init__(
        self,
        found: Sequence[HandlerFacts],
        *,
        default: str,
        monitor: Path,
        monitor_problem: str = "",
    ) -> None:
        self._found = {facts.name: facts for facts in found}
        self._retired: set[str] = set()
        self._default = default
        self._monitor = monitor
        self._monitor_problem = monitor_problem

    @property
    def default(self) -> str:
        """The name of the handler of pods that ask for none."""
        return self._default

    @property
    def by_name(self) -> Mapping[str, HandlerFacts]:
        """Every handler that a pod may have, the retired ones too; it follows `change`."""
        return self._found

    @property
    def configured(self) -> list[HandlerFacts]:
        """Those that new pods may ask for."""
        return [facts for facts in self._found.values() if facts.name not in self._retired]

    @property
    def usable(self) -> list[HandlerFacts]:
        """Those of them that could be used when they were read."""
        return [facts for facts in self.configured if not facts.problem]

    def change(self, found: Iterable[HandlerFacts], retired: Iterable[str]) -> None:
        """Add or replace handlers; no new pod gets one of `retired`, whose pods go on."""
        for facts in found:
            self._found[facts.name] = facts
            self._retired.discard(facts.name)
        self._retired.update(retired)

    @property
    def monitor(self) -> Path:
        """The path of conmon."""
        return self._monitor

    @property
    def monitor_problem(self) -> str:
        """Why conmon could not be used at the start; "" = it could."""
        return self._monitor_problem

    @property
    def problem(self) -> str:
        """Why no pod of the default handler can run; "" = they can. Checks the programs."""
        return self._problem_of(self._default)

    def resolve(self, name: str) -> HandlerFacts:
        """The handler of a new pod that asks for `name`, "" for the default one.

        Raises WrongStateError while a program that its containers need cannot be used,
        InvalidRequestError for a name that is not configured.
        """
        facts = self._found.get(name or self._default)
        if facts is None or facts.name in self._retired:
            if facts is None:
                self._require(name)
            raise InvalidRequestError(
                f'runtime handler "{name}" is not configured; known are '
                f"{sorted(facts.name for facts in self.usable)}"
            )
        self._require(name)
        return facts

    def of_pod(self, name: str) -> HandlerFacts:
        """The handler of another container of a pod that asked for `name` when it was made.

        Raises WrongStateError while a program that it needs cannot be used, and for a name that is
        no longer configured.
        """
        self._require(name)
        facts = self._found.get(name or self._default)
        if facts is None:
            raise no_longer_configured(name)
        return facts

    def check_image(self, name: str) -> None:
        """Raises InvalidRequestError for an image requested for an unknown handler."""
        if name and name not in {facts.name for facts in self.configured}:
            raise InvalidRequestError(
                f"image.runtime_handler {name[:80]!r} is not configured; handlers: "
                f"{', '.join(sorted(facts.name for facts in self.configured))}"
            )

    def _require(self, name: str) -> None:
        if problem := self._problem_of(name or self._default):
            raise WrongStateError(f"this node cannot run containers: {problem}")

    def _problem_of(self, name: str) -> str:
        """The problem found at the start, or a program that has disappeared since."""
        facts = self._found.get(name)
        found = [facts.problem if facts is not None else "", self._monitor_problem]
        if not any(found):
            programs = [self._monitor] if facts is None else [facts.path, self._monitor]
            found = [
                f"{program} can no longer be executed; install it again"
                for program in programs
                if not os.access(program, os.X_OK)
            ]
        return "; ".join(text for text in found if text)


def no_longer_configured(name: str) -> WrongStateError:
    """The error for a pod or container whose handler has left the configuration."""
    return WrongStateError(
        f'runtime handler "{name}" is no longer configured; set runtime.handlers.{name} '
        "again, or remove the pod"
    )


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
    if problem := another_program(kind, version):
        return dataclasses.replace(facts, problem=f"{path} {problem}")
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
        memory_policy=bool(linux.get("memoryPolicy")),  # lists of modes and flags
        idmapped_mounts=_has(linux, "mountExtensions", "idmap", "enabled"),
        checkpoint_problem=await checkpoint_problem(kind, version, limit_s=limit_s),
        own_kernel=kind == "runsc",
        userns_problem=_userns_problem(path, kind, linux),
    )


def _userns_problem(path: Path, kind: str, linux: dict[str, Any]) -> str:
    if kind == "runsc":
        return "the processes of gVisor's containers have no ids of the node in any case"
    known = "user" in (linux.get("namespaces") or ())
    return "" if known else f"{path} features reports no user namespaces"


def _has(features: dict[str, Any], *path: str) -> bool:
    """Whether `linux.PATH` of the features is true (OCI runtime specification, features)."""
    found: object = features
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found is True


async def monitor_problem(path: Path, *, limit_s: float = _LIMIT_S) -> str:
    """Why conmon at `path` cannot be used; "" = it can. Read once at start."""
    try:
        version = await _answer(path, "--version", limit_s)
    except OSError as exc:
        return _no_answer(path, "conmon", exc)
    if problem := nameless("conmon", version):
        return f"{path} {problem}, runtime.conmon, and restart criagent"
    problem = too_old("conmon", version)
    return f"{path}: {problem}; install a newer one and restart criagent" if problem else ""


async def _answer(path: Path, question: str, limit_s: float) -> str:
    """Output of the program for one argument. Raises OSError, TimeoutError."""
    return (await run([path, question], limit_s=limit_s)).output


def _no_answer(path: Path, package: str, failure: OSError) -> str:
    if isinstance(failure, TimeoutError):
        return f"{path} --version does not end; install another build and restart criagent"
    return f"{path} cannot be run: {failure.strerror}; install {package} and restart criagent"
