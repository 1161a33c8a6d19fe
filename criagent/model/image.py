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
    path: str = ""  # of an artifact: the blob is this file; "" = an archive


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlatformNames:
    """Names under which an image was pulled for handlers of another platform than the node's."""

    platform: str  # as runtime.handlers.NAME.platform has it
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image as the store knows it. `id` is the digest of its configuration.

    An OCI artifact, which is for volumes only, has its kind as `artifact`, and the digest of its
    manifest as `id`: artifacts of a kind share one empty configuration.

    `repo_tags` and `repo_digests` name it for this node's platform. The same names may mean another
    image for another platform: `elsewhere` has those.
    """

    id: str
    manifest_digest: str
    config: ImageConfig
    layers: tuple[Layer, ...]
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    size: int = 0  # bytes of configuration and compressed layers
    platform: str = ""
    created: str = ""  # RFC 3339 text of the configuration
    artifact: str = ""
    pulled_at_ns: int = 0
    elsewhere: tuple[PlatformNames, ...] = ()

    @property
    def all_tags(self) -> tuple[str, ...]:
        """Its tags, whatever the platform, each once."""
        more = (tag for names in self.elsewhere for tag in names.repo_tags)
        return tuple(dict.fromkeys((*self.repo_tags, *more)))

    @property
    def all_digests(self) -> tuple[str, ...]:
        """Its repo digests, whatever the platform, each once."""
        more = (digest for names in self.elsewhere for digest in names.repo_digests)
        return tuple(dict.fromkeys((*self.repo_digests, *more)))

    @property
    def names(self) -> tuple[str, ...]:
        """Its tags and repo digests, whatever the platform."""
        return (*self.all_tags, *self.all_digests)


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
    # unpacked were not counted: both are 0. `facts` is the digest of `ContentCount`; "" = of an
    # older version.
    entries: int = 0
    content_bytes: int = 0
    facts: str = ""
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
