# SPDX-License-Identifier: Apache-2.0
"""Mounts of images (KEP-4639): the rules that do not depend on the image."""

from __future__ import annotations

from pathlib import PurePosixPath

from criagent.base.errors import InvalidRequestError
from criagent.model.common import MountPropagation
from criagent.model.container import Mount

FAILED = "ImageVolumeMountFailed"


def check_image_mount(what: str, mount: Mount) -> None:
    """Rules that do not depend on the image. Raises InvalidRequestError."""
    problem = _problem(mount)
    if problem:
        raise InvalidRequestError(
            f"{FAILED}: {what}: mount {mount.container_path[:200]}: an image volume {problem}"
        )


def _problem(mount: Mount) -> str:
    path = PurePosixPath(mount.image_sub_path)
    if mount.image is None:
        return "" if not mount.image_sub_path else "is required for image_sub_path"
    if not mount.image.image:
        return "requires image.image"
    if mount.host_path:
        return "must have no host_path"
    if not mount.readonly:
        return "is always read-only: set readonly"
    if mount.propagation is MountPropagation.BIDIRECTIONAL:
        return "does not support mount propagation"
    if path.is_absolute() or ".." in path.parts or "\0" in mount.image_sub_path:
        return (
            f"requires a relative image_sub_path without '..', not {mount.image_sub_path[:200]!r}"
        )
    return ""
