# SPDX-License-Identifier: Apache-2.0
"""Images: AuthConfig to credentials, rows to Image, usage to FilesystemUsage."""

from __future__ import annotations

from criagent._proto import api_pb2
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.images import FsUsage
from criagent.model.image import Image


def registry_auth(message: api_pb2.AuthConfig) -> RegistryAuth:
    """The credentials of the call."""
    return RegistryAuth(
        username=message.username,
        password=message.password,
        auth=message.auth,
        server_address=message.server_address,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
    )


def image_message(image: Image, *, pinned: bool) -> api_pb2.Image:
    """The row as ListImages and ImageStatus show it, with either uid or username."""
    message = api_pb2.Image(
        id=image.id,
        repo_tags=image.all_tags,
        repo_digests=image.all_digests,
        size=image.size,
        spec=api_pb2.ImageSpec(image=image.id),
        pinned=pinned,
    )
    user = image.config.user.partition(":")[0]
    if user.isdigit() and len(user) < 11:
        message.uid.value = int(user)
    else:
        message.username = user
    return message


def filesystem_usage(usage: FsUsage) -> api_pb2.FilesystemUsage:
    """ImageFsInfo's entry."""
    return api_pb2.FilesystemUsage(
        timestamp=usage.timestamp_ns,
        fs_id=api_pb2.FilesystemIdentifier(mountpoint=usage.mountpoint),
        used_bytes=api_pb2.UInt64Value(value=usage.used_bytes),
        inodes_used=api_pb2.UInt64Value(value=usage.inodes_used),
    )
