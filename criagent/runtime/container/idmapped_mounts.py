# SPDX-License-Identifier: Apache-2.0
"""Mounts of the node's paths; ids mapped as the pod's are tried, or made in the runtime's place.

crun and newer runcs map the ids of a mount themselves. An older runc silently ignores the request,
so it gets a clone of the mount that is already mapped, attached in the bundle until the container
is created.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError
from criagent.kernel import idmap, mount
from criagent.kernel.mount import MountEntry, mountinfo
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.spec.inputs import ResolvedMount
from criagent.runtime.spec.mounts.host_paths import HostPaths, local_path


class HostMounts:
    """The mounts of the node's paths that a container asks for."""

    def __init__(
        self, *, host_paths: HostPaths, handlers: Handlers, paths: RuntimePaths, fs: Executor
    ) -> None:
        self._host_paths = host_paths
        self._handlers = handlers
        self._paths = paths
        self._fs = fs

    async def resolve(self, container: Container, sandbox: Sandbox) -> tuple[ResolvedMount, ...]:
        """Their sources, with mapped ids where they are wanted and the handler maps none itself.

        Raises InvalidRequestError for a path or a mapping that cannot be.
        """
        asked = [mount for mount in container.spec.mounts if mount.image is None]
        mounts = await self._host_paths.resolve(asked)
        if any(one.request.uid_mappings for one in mounts):
            return await run_in(self._fs, self._mapped, container, sandbox, mounts)
        return mounts

    def _mapped(
        self, container: Container, sandbox: Sandbox, mounts: tuple[ResolvedMount, ...]
    ) -> tuple[ResolvedMount, ...]:
        userns = self._paths.userns(sandbox.id)
        if not self._handlers.by_name[container.handler].idmapped_mounts:
            return attach_mapped(mounts, userns, self._paths.mapped_mounts(container.id))
        try_mappings(mounts, userns)
        return mounts


def try_mappings(mounts: Sequence[ResolvedMount], userns: Path) -> None:
    """Raises InvalidRequestError for a mount that does not support id mapping.

    Mounts on network file systems are left to the runtime, which may be abandoned.
    """
    _map(mounts, userns, None)


def attach_mapped(
    mounts: Sequence[ResolvedMount], userns: Path, directory: Path
) -> tuple[ResolvedMount, ...]:
    """`mounts` with mapped clones below `directory` as sources, for a runtime that cannot map.

    Raises InvalidRequestError for a mount that does not support id mapping; `detach_mapped` is the
    undo.
    """
    directory.mkdir(exist_ok=True, mode=0o700)
    return _map(mounts, userns, directory)


def detach_mapped(directory: Path) -> None:
    """Remove the clones below `directory`, and the directory; idempotent."""
    if not directory.exists():
        return
    for entry in directory.iterdir():
        # Otherwise mounts below it would also vanish from the container's mount.
        mount.make_private(entry)
        mount.detach(entry)
        if entry.is_dir():
            entry.rmdir()
        else:
            entry.unlink()
    directory.rmdir()


def _map(
    mounts: Sequence[ResolvedMount], userns: Path, directory: Path | None
) -> tuple[ResolvedMount, ...]:
    table = mountinfo()
    result = []
    fd = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for number, asked in enumerate(mounts):
            place = directory / str(number) if directory is not None else None
            wanted = bool(asked.request.uid_mappings)
            result.append(_mapped(asked, fd, place, table) if wanted else asked)
    finally:
        os.close(fd)
    return tuple(result)


def _mapped(
    asked: ResolvedMount, userns: int, place: Path | None, table: Sequence[MountEntry]
) -> ResolvedMount:
    what = f"mount {asked.request.container_path}: {asked.source}"
    local = local_path(asked.source, table) is not None
    if not local and place is None:
        return asked
    if not local:
        raise InvalidRequestError(
            f"{what} is on a network file system, whose ids this node's OCI runtime cannot map; "
            "install crun, or runc 1.2 or newer"
        )
    try:
        with idmap.idmapped(Path(asked.source), userns, readonly=False) as tree:
            if place is None:
                return asked
            if Path(asked.source).is_dir():
                place.mkdir()
            else:
                place.touch(mode=0o600)
            idmap.attach(tree, place)
    except OSError as exc:
        raise InvalidRequestError(
            f"{what} is on a file system that does not support id mapping: {exc.strerror}"
        ) from None
    faults.reach("container-create:idmapped-volume")
    request = dataclasses.replace(asked.request, uid_mappings=(), gid_mappings=())
    return dataclasses.replace(asked, request=request, source=str(place))
