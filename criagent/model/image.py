# SPDX-License-Identifier: Apache-2.0
"""Images, their layers as snapshots, blobs, and security profiles."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """The parts of an OCI image configuration that containers are made of."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    labels: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of an image: the blob as transferred and its position in the chain."""

    digest: str
    size: int
    media_type: str
    diff_id: str
    chain_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as the store knows it. `id` is the digest of its configuration."""

    id: str
    manifest_digest: str
    config: ImageConfig
    layers: tuple[Layer, ...]
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    size: int = 0  # bytes of configuration and compressed layers
    platform: str = ""
    created: str = ""  # RFC 3339 text of the configuration
    pulled_at_ns: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A directory `snapshots/<number>`: a committed layer, or a container's writable layer.

    `key` is the chain ID of a committed layer, the container id of a writable one. A damaged layer
    that was replaced while containers use it goes on as `damaged_key`. `driver` is the storage
    driver that made it; "" = that of the root directory.
    """

    number: int
    key: str
    committed: bool
    parent: str = ""  # chain ID below; "" for the first layer
    diff_id: str = ""
    used_bytes: int = 0
    inodes: int = 0
    created_at_ns: int = 0
    # Names in a committed layer's tree and bytes of its regular files, for fsck. Layers that 0.1
    # unpacked were not counted: both are 0.
    entries: int = 0
    content_bytes: int = 0
    driver: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    digest: str
    size: int
    media_type: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PulledProfile:
    """A security profile from a registry: an artifact of one layer, the profile's document."""

    digest: str  # of the manifest
    layer: str  # digest of the document
    size: int  # bytes of both
    refs: tuple[str, ...] = ()  # as PullSecurityProfile was given them, sorted
