# SPDX-License-Identifier: Apache-2.0
"""Images as volumes (KEP-4639): an image's layers, mounted read-only below the container's bundle.

Each volume is a separate mount at `containers/<id>/volumes/<n>`, where n is the mount's index in
the request; the container gets a read-only bind mount of it or of a directory within. The row names
the images, and so protects their layers, from before the first mount until after the last is
removed. Error texts begin with the word by which the kubelet counts them.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError, NotFoundError
from criagent.image.images import Images
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.image.snapshots.driver import MountPoint
from criagent.kernel.paths import open_in_root
from criagent.model.common import MountPropagation
from criagent.model.container import Container, ContainerSpec, ImageVolume, Mount
from criagent.model.sandbox import Sandbox
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.pod.user_namespaces import mapped_ids
from criagent.runtime.spec.inputs import ResolvedMount
from criagent.runtime.spec.mounts.images import FAILED


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageVolumes:
    """Finds the images of volumes and mounts them."""

    images: Images
    drivers: SnapshotsByHandler
    paths: RuntimePaths
    fs: Executor

    def find(self, spec: ContainerSpec, handler: str) -> tuple[ImageVolume, ...]:
        """The images that `spec` mounts, for the platform of `handler`.

        Raises NotFoundError, InvalidRequestError.
        """
        found = []
        for number, mount in enumerate(spec.mounts):
            if mount.image is None:
                continue
            name, place = _name(mount), mount.container_path
            try:
                image = self.images.find(mount.image.image, handler)
            except InvalidRequestError as exc:
                raise InvalidRequestError(f"{FAILED}: mount {place}: {exc}") from None
            if image is None:
                raise NotFoundError(
                    f'{FAILED}: mount {place}: image "{name[:500]}" is not on this node; '
                    "pull it first"
                )
            top = image.layers[-1].chain_id if image.layers else ""
            found.append(ImageVolume(mount=number, image_id=image.id, top=top))
        return tuple(found)

    async def mount(
        self, container: Container, sandbox: Sandbox, label: str
    ) -> Mapping[int, ResolvedMount]:
        """Mount the row's image volumes; returns the sources of its mounts by their index.

        The SELinux label is a property of the mount; no layer is ever relabelled. In a pod with a
        user namespace the layers are mapped, whatever mappings the mount has. They are removed with
        the bundle (`ContainerFiles.remove`). Raises NotFoundError for an absent sub-path,
        InvalidRequestError for one that is not a directory, AgentError.
        """
        sources = {}
        ids = mapped_ids(self.paths, sandbox, container.id)
        part = self.drivers.of_container(container.id)
        for volume in container.image_volumes:
            request = container.spec.mounts[volume.mount]
            target = self.paths.image_volume(container.id, volume.mount)
            at = MountPoint(path=target, ids=ids, label=label)
            await part.mount_image(volume.top, at)
            source = await run_in(self.fs, _source, target, request)
            slave = request.propagation is MountPropagation.HOST_TO_CONTAINER
            sources[volume.mount] = ResolvedMount(
                request=dataclasses.replace(request, uid_mappings=(), gid_mappings=()),
                source=source,
                propagation="rslave" if slave else "rprivate",
            )
        return sources


def merged(
    mounts: Sequence[Mount], volumes: Mapping[int, ResolvedMount], others: Sequence[ResolvedMount]
) -> tuple[ResolvedMount, ...]:
    """Image volumes and the other mounts in the order of the request."""
    rest = iter(others)
    return tuple(
        volumes[number] if mount.image is not None else next(rest)
        for number, mount in enumerate(mounts)
    )


def _name(mount: Mount) -> str:
    """The image's name for the user; the kubelet requests it by id."""
    image = mount.image
    return "" if image is None else image.user_specified_image or image.image


def _source(volume: Path, mount: Mount) -> str:
    """The directory to bind, without symlinks. The mount is read-only, so it cannot change."""
    if not mount.image_sub_path:
        return str(volume)
    place = f"{FAILED}: mount {mount.container_path}: image_sub_path {mount.image_sub_path!r}"
    image = _name(mount)
    root = os.open(volume, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = open_in_root(root, mount.image_sub_path, os.O_PATH)
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            raise NotFoundError(f'{place} does not exist in image "{image}"') from None
        raise InvalidRequestError(f'{place} of image "{image}": {exc.strerror}') from None
    finally:
        os.close(root)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise InvalidRequestError(
                f'{place} of image "{image}" is not a directory; name the directory that holds it'
            )
        source = os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
    try:
        source.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            f"{place} leads to {source!r}, which is not UTF-8, as OCI runtimes require"
        ) from None
    return source
