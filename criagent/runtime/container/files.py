# SPDX-License-Identifier: Apache-2.0
"""A container's files and kernel objects besides its process: bundle, rootfs, cgroup."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from criagent.base.aio import run_in
from criagent.base.os_errors import about
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.image.snapshots.driver import MountPoint
from criagent.kernel import mount
from criagent.kernel.trees import remove_tree
from criagent.model.container import Container
from criagent.model.image import Image, Snapshot
from criagent.model.sandbox import Sandbox
from criagent.runtime.container.idmapped_mounts import detach_mapped
from criagent.runtime.node import own_cgroup
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.pod.user_namespaces import mapped_ids
from criagent.runtime.spec.inputs import OciObject


class _ProcessOnly(msgspec.Struct):
    process: OciObject


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFiles:
    """Writes and removes the bundle; every step is idempotent and needs only the id."""

    paths: RuntimePaths
    drivers: SnapshotsByHandler
    fs: Executor

    def rootfs(self, container_id: str) -> Path:
        """Where the root file system is mounted."""
        return self.paths.rootfs(container_id)

    async def make_layer(self, container: Container, image: Image, limit_bytes: int) -> Snapshot:
        """The new writable layer, which can grow by `limit_bytes`; 0 = without a limit.

        Raises AlreadyExistsError, UnsupportedError for a limit that the driver can't keep.
        """
        parent = image.layers[-1].chain_id if image.layers else ""
        part = self.drivers.of_handler(container.handler)
        return await part.create_container(
            container.id,
            parent=parent,
            created_at_ns=container.created_at_ns,
            limit_bytes=limit_bytes,
        )

    async def mount_rootfs(
        self, container_id: str, sandbox: Sandbox, *, image: Image, snapshot: Snapshot, label: str
    ) -> None:
        """Create the bundle's directory and mount the rootfs in it, with the pod's id mappings."""
        ids = mapped_ids(self.paths, sandbox, container_id)
        rootfs = self.paths.rootfs(container_id)
        at = MountPoint(path=rootfs, ids=ids, label=label)
        await self.drivers.of_driver(snapshot.driver).mount_container(snapshot, image, at)

    def write(self, container_id: str, spec: OciObject) -> None:
        """config.json of the bundle; synchronous."""
        bundle = self.paths.container(container_id)
        target = bundle / "config.json"
        with about(target):
            target.touch(mode=0o600)  # the environment may hold secrets
            target.write_bytes(msgspec.json.encode(spec))

    def spec(self, container_id: str) -> OciObject:
        """As `read_spec`."""
        return read_spec(self.paths, container_id)

    def process(self, container_id: str) -> OciObject:
        """The process object of config.json; the rest is not parsed."""
        data = (self.paths.container(container_id) / "config.json").read_bytes()
        return msgspec.json.decode(data, type=_ProcessOnly).process

    async def release_mounts(self, container_id: str) -> None:
        """Remove mounts that only the runtime's `create` needed."""
        await run_in(self.fs, detach_mapped, self.paths.mapped_mounts(container_id))

    async def remove(self, container_id: str, cgroup: str) -> None:
        """Unmount rootfs and volumes, delete bundle, exit file, cgroup and writable layer."""
        await run_in(self.fs, self._remove, container_id, cgroup)
        part = self.drivers.of_container(container_id)
        await part.remove(container_id)
        part.empty_soon()

    async def forget_state(self, container_id: str) -> None:
        """Drop what OCI runtimes keep of a dead container whose handler is no longer configured."""
        await run_in(self.fs, self.paths.forget_state, container_id)

    def _remove(self, container_id: str, cgroup: str) -> None:
        bundle = self.paths.container(container_id)
        mount.detach(self.paths.rootfs(container_id))
        volumes = self.paths.image_volumes(container_id)
        if volumes.exists():
            for volume in volumes.iterdir():
                mount.detach(volume)
        lower_layers = self.paths.lower_layers(container_id)
        for place in (lower_layers, *lower_layers.parent.glob(f"{lower_layers.name}-*")):
            mount.detach(place)
        detach_mapped(self.paths.mapped_mounts(container_id))
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(bundle)
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self.paths.restore(container_id))
        self.paths.exit_file(container_id).unlink(missing_ok=True)
        own_cgroup.end(cgroup, container_id)


def read_spec(paths: RuntimePaths, container_id: str) -> OciObject:
    """config.json as given to the runtime; synchronous. Raises FileNotFoundError."""
    data = (paths.container(container_id) / "config.json").read_bytes()
    document: OciObject = msgspec.json.decode(data)
    return document
