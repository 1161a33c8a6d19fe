# SPDX-License-Identifier: Apache-2.0
"""RestorePod: a checkpoint of a pod as a new pod, whose containers are CREATED (KEP-5823).

The steps of RunPodSandbox, then for each container: row, writable layer, bundle → archive unpacked
→ changed files; then all of them are CREATED, and the sandbox is READY. StartContainer lets the
processes go on. Until the sandbox is ready a crash undoes everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from criagent.base import faults
from criagent.base.aio import Owner, Rollback, run_in
from criagent.base.errors import AlreadyExistsError, InvalidRequestError, UnsupportedError
from criagent.kernel.trees import remove_tree
from criagent.model.container import Container, ContainerSpec, ContainerState
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.runtime.checkpoint.container import interruption
from criagent.runtime.checkpoint.documents import destinations
from criagent.runtime.checkpoint.record import IMAGES
from criagent.runtime.checkpoint.restored import HOME
from criagent.runtime.checkpoint.tar import Interrupted
from criagent.runtime.container.erasure import ContainerErasure
from criagent.runtime.container.files import read_spec
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.nri.door import Plugins
from criagent.runtime.pod.namespaces import namespace_pins, pod_hostname
from criagent.runtime.restore import archive, files, images
from criagent.runtime.restore.match import Pair, paired
from criagent.runtime.restore.source import Source, SourceReader
from criagent.runtime.verbs.create_container import ContainerCreator
from criagent.runtime.verbs.run_sandbox import Contents, SandboxRunner
from criagent.store.containers import ContainerStore

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class _Restoration:
    """What one call is about."""

    source: Source
    pairs: Sequence[Pair]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A container and what its content comes from. The `first` has the pod's objects of IPC."""

    source: Source
    pair: Pair
    sandbox: Sandbox
    container: Container
    first: bool


class PodRestorer:
    """The RestorePod verb."""

    def __init__(
        self,
        *,
        runner: SandboxRunner,
        creator: ContainerCreator,
        containers: ContainerStore,
        erasure: ContainerErasure,
        plugins: Plugins,
        handlers: Handlers,
        reader: SourceReader,
        paths: RuntimePaths,
    ) -> None:
        self._runner = runner
        self._creator = creator
        self._containers = containers
        self._erasure = erasure
        self._plugins = plugins
        self._handlers = handlers
        self._reader = reader
        self._work = reader.work
        self._paths = paths

    async def restore(
        self,
        checkpoint_path: str,
        spec: SandboxSpec,
        containers: Sequence[ContainerSpec],
        limit_s: float,
    ) -> tuple[Sandbox, list[Container]]:
        """The READY sandbox of `spec` and its CREATED containers, made within `limit_s`.

        A repeat joins the work or gets its result. After an error nothing is left. Raises
        UnsupportedError without CRIU; InvalidRequestError for a checkpoint of another node and for
        one that does not fit; CorruptError for one that was changed; as RunPodSandbox and
        CreateContainer.
        """
        handler = self._handlers.resolve(spec.runtime_handler)
        if not containers:
            raise InvalidRequestError("container_configs is empty")
        source = await self._reader.read(checkpoint_path)
        pairs = paired(source.manifest, handler.name, spec, containers)
        handler.require_restores()
        contents = Contents(
            request=(checkpoint_path, tuple(containers)),
            make=partial(self._make, _Restoration(source, pairs)),
            lost=self._lost,
            limit_s=limit_s,
        )
        sandbox = await self._runner.run(spec, contents)
        return sandbox, self._restored(sandbox, containers)

    def _restored(self, sandbox: Sandbox, specs: Sequence[ContainerSpec]) -> list[Container]:
        found = {
            one.spec.metadata: one
            for one in self._containers.of_sandbox(sandbox.id)
            if one.restored and one.state is ContainerState.CREATED
        }
        restored = [found.get(spec.metadata) for spec in specs]
        if [None if one is None else one.spec for one in restored] != list(specs):
            raise AlreadyExistsError(
                f'sandbox name "{sandbox.spec.metadata.key}" is taken by {sandbox.id}; remove it '
                "first"
            )
        return [one for one in restored if one is not None]

    async def _make(
        self,
        what: _Restoration,
        sandbox: Sandbox,
        owner: Owner[SandboxMetadata, Sandbox],
        undo: Rollback,
    ) -> None:
        interrupted = interruption()
        directory = self._paths.restore(sandbox.id)
        undo.push("containers", partial(self._erase, sandbox.id))
        undo.push("shared-memory", partial(run_in, self._work, _remove, directory))
        owner.stage = "shared memory"
        await run_in(self._work, self._write_shm, what.source, sandbox, interrupted)
        faults.reach("restore-pod:shm")
        made = []
        for number, pair in enumerate(what.pairs):
            container = await self._creator.prepare(sandbox, pair.spec, owner)
            owner.stage = f"checkpoint of container {number + 1} of {len(what.pairs)}"
            part = _Part(
                source=what.source,
                pair=pair,
                sandbox=sandbox,
                container=container,
                first=not number,
            )
            await run_in(self._work, self._write, part, interrupted)
            faults.reach("restore-pod:container")
            made.append(container)
        owner.stage = "commit"
        for container in made:
            await self._creator.finish(container)
            faults.reach("restore-pod:created")
        log.info("pod_restored", sandbox_id=sandbox.id, path=str(what.source.path))

    def _write_shm(self, source: Source, sandbox: Sandbox, interrupted: Interrupted) -> None:
        """Fill the pod's /dev/shm."""
        directory = self._paths.restore(sandbox.id)
        directory.mkdir(mode=0o700)
        copy = directory / "shm.tar"
        if source.copy_shm(copy, interrupted):
            files.extract(copy, self._paths.shm(sandbox.id))
        _remove(directory)

    def _write(self, part: _Part, interrupted: Interrupted) -> None:
        """Unpack the archive of a container, and write its changed files."""
        container = part.container
        target = self._paths.restore(container.id)
        target.mkdir(mode=0o700)
        found = archive.unpack(part.source, part.pair.archived, target, interrupted)
        spec = read_spec(self._paths, container.id)
        if spec["process"].get("selinuxLabel"):
            raise UnsupportedError("a pod with SELinux labels cannot be restored")
        part.pair.check(container.image_id, destinations(spec), found.mounts)
        rootfs = self._paths.rootfs(container.id)
        files.delete(rootfs, found.deleted)
        diff = target / archive.DIFF
        if diff.exists():
            files.extract(diff, rootfs)
            diff.unlink()
        images.set_hostname(target / IMAGES, pod_hostname(part.sandbox))
        if not part.first:
            images.drop_ipc_objects(target / IMAGES)
        images.keep_cgroup_v2(target / IMAGES)
        pins = namespace_pins(self._paths, part.sandbox)
        # crun tells CRIU the cgroup: below that of the row with the systemd driver.
        names_cgroup = self._handlers.resolve(container.handler).type == "crun"
        images.write_options(target / HOME, "" if names_cgroup else container.cgroup, pins)

    async def _erase(self, sandbox_id: SandboxId) -> None:
        for container in self._containers.of_sandbox(sandbox_id):
            await self._plugins.container_undone(container.id)
            await self._erasure.erase(container)

    async def _lost(self, sandbox_id: SandboxId) -> None:
        """An undo has failed: list what is left, for the kubelet to remove it."""
        for container in self._containers.of_sandbox(sandbox_id):
            await self._creator.list_for_removal(container.id)


def _remove(directory: Path) -> None:
    if directory.exists():
        remove_tree(directory)
