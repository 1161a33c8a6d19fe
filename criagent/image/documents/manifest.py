# SPDX-License-Identifier: Apache-2.0
"""Manifests, indexes and image configurations: OCI and Docker documents, decoded with limits.

What encoding/json of Go takes is taken (`gojson`), what containerd refuses as ambiguous is refused;
docs/images.md has the table. Standard library only: the unpack worker reads archives with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from criagent.base.errors import CorruptError, InvalidRequestError, UnsupportedError
from criagent.image.documents import gojson
from criagent.image.documents.digest import Digest, digest_of, parse_digest
from criagent.image.documents.gojson import (
    BOOL,
    INT,
    NAMES,
    OCTETS,
    STRING,
    STRING_MAP,
    STRINGS,
    TIME,
    MalformedError,
    Slice,
    Struct,
    list_of,
    nothing,
)
from criagent.image.documents.platforms import Platform
from criagent.model.image import ImageConfig, Layer

MAX_DOCUMENT = 8 << 20  # the registry must not make us hold more; the specification asks for 4 MiB

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
ACCEPTED = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
_IMAGE_CONFIGS = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_ANY_CONFIGS = {*_IMAGE_CONFIGS, "", "application/octet-stream", "application/json"}
_INDEXES = {OCI_INDEX, DOCKER_LIST}

MAX_LAYERS = 500
MAX_ENTRIES = 1000  # manifests in an index
_MAX_URLS = 32  # of one layer
_MAX_SIZE = 1 << 53  # so that the sum over all layers fits into 64 bits
_MAX_STRINGS = 10_000  # of one list of the configuration: env, labels, …
_MAX_VOLUMES = 1000

_PLATFORM = Struct(
    {
        "architecture": STRING,
        "os": STRING,
        "os.version": STRING,
        "os.features": STRINGS,
        "variant": STRING,
    }
)
_DESCRIPTOR = Struct(
    {
        "mediaType": STRING,
        "digest": STRING,
        "size": INT,
        "urls": STRINGS,
        "annotations": STRING_MAP,
        "data": OCTETS,
        "platform": (_PLATFORM.pointer, nothing),
        "artifactType": STRING,
    }
)
_COMMON = {
    "schemaVersion": INT,
    "mediaType": STRING,
    "artifactType": STRING,
    "subject": (_DESCRIPTOR.pointer, nothing),
    "annotations": STRING_MAP,
}
_DESCRIPTORS = (list_of(_DESCRIPTOR, _DESCRIPTOR.zero), nothing)
_MANIFEST = Struct({**_COMMON, "config": (_DESCRIPTOR, _DESCRIPTOR.zero), "layers": _DESCRIPTORS})
_INDEX = Struct({**_COMMON, "manifests": _DESCRIPTORS})
_PROCESS = Struct(
    {
        "User": STRING,
        "ExposedPorts": NAMES,
        "Env": STRINGS,
        "Entrypoint": STRINGS,
        "Cmd": STRINGS,
        "Volumes": NAMES,
        "WorkingDir": STRING,
        "Labels": STRING_MAP,
        "StopSignal": STRING,
        "ArgsEscaped": BOOL,
    }
)
_ROOTFS = Struct({"type": STRING, "diff_ids": STRINGS})
_HISTORY = Struct(
    {
        "created": TIME,
        "created_by": STRING,
        "author": STRING,
        "comment": STRING,
        "empty_layer": BOOL,
    }
)
_CONFIGURATION = Struct(
    {
        "created": TIME,
        "author": STRING,
        "architecture": STRING,
        "os": STRING,
        "os.version": STRING,
        "os.features": STRINGS,
        "variant": STRING,
        "config": (_PROCESS, _PROCESS.zero),
        "rootfs": (_ROOTFS, _ROOTFS.zero),
        "history": (list_of(_HISTORY, _HISTORY.zero), nothing),
    }
)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A document's description of another one or of a layer; `digest` may be any text."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()  # of a layer that registries do not distribute

    @property
    def parsed(self) -> Digest:
        """The digest, validated."""
        return parse_digest(self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest (`config` and `layers`) or an index (`manifests`), never both."""

    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] | None = None

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests by platform."""
        return self.manifests is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """An image configuration: the settings of containers, and the layers' diff IDs."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    platform: Platform
    created: str
    rootfs_type: str = ""


def parse_document(data: bytes, media_type: str) -> Document:
    """The manifest or index `data`, served as `media_type`.

    Raises CorruptError for malformed or ambiguous documents, UnsupportedError for schema 1. Digests
    and sizes of an index's entries are not checked: a bad entry affects no other.
    """
    _limit(data, "manifest")
    try:
        document = _decoded(gojson.parse(data))
    except MalformedError as exc:
        raise CorruptError(f"malformed manifest: {exc}") from None
    kind = media_type.partition(";")[0].strip().lower()
    if kind in ACCEPTED and (kind in _INDEXES) != document.is_index:
        raise CorruptError(
            f"malformed manifest: the content is not the {kind} that it was served as"
        )
    if document.media_type in ACCEPTED and (document.media_type in _INDEXES) != document.is_index:
        raise CorruptError(
            f"malformed manifest: the content does not match its mediaType {document.media_type}"
        )
    for entry in (*document.layers, *([document.config] if document.config else [])):
        _check(entry)
    return document


def _decoded(value: Any) -> Document:
    """A key counts as there also when its value is null, as containerd reads it."""
    if not isinstance(value, gojson.Members):
        raise MalformedError("expected an object")
    keys = {gojson.fold(key): item for key, item in value}
    is_manifest, is_index = "CONFIG" in keys or "LAYERS" in keys, "MANIFESTS" in keys
    old = keys.get("SCHEMAVERSION") == "1" and not is_manifest and not is_index
    if "FSLAYERS" in keys or old:
        raise UnsupportedError("the image has a schema 1 manifest; push it again with a newer tool")
    if is_manifest == is_index:
        raise MalformedError("expected either manifests, or config and layers")
    if is_index:
        raw = _INDEX(value, _INDEX.zero())
        entries = _items(raw["manifests"], MAX_ENTRIES, "manifests")
        return Document(
            media_type=raw["mediaType"],
            artifact_type=raw["artifactType"],
            manifests=tuple(map(_descriptor, entries)),
        )
    raw = _MANIFEST(value, _MANIFEST.zero())
    layers = _items(raw["layers"], MAX_LAYERS, "layers")  # null for none, as Go writes it
    if "CONFIG" not in keys or not raw["config"]["digest"]:
        raise MalformedError("config is missing")
    return Document(
        media_type=raw["mediaType"],
        artifact_type=raw["artifactType"],
        config=_descriptor(raw["config"]),
        layers=tuple(map(_descriptor, layers)),
    )


def descriptor_of(value: Any) -> Descriptor:
    """The descriptor that a parsed value is. Raises CorruptError."""
    try:
        return _descriptor(_DESCRIPTOR(value, _DESCRIPTOR.zero()))
    except MalformedError as exc:
        raise CorruptError(f"malformed descriptor: {exc}") from None


def _descriptor(raw: dict[str, Any]) -> Descriptor:
    platform = raw["platform"]
    return Descriptor(
        digest=raw["digest"],
        size=raw["size"],
        media_type=raw["mediaType"],
        platform=None if platform is None else _platform(platform),
        artifact_type=raw["artifactType"],
        annotations=raw["annotations"] or {},
        urls=tuple(_items(raw["urls"], _MAX_URLS, "urls")),
    )


def _platform(raw: dict[str, Any]) -> Platform:
    features = tuple(_items(raw["os.features"], _MAX_STRINGS, "os.features"))
    return Platform(raw["architecture"], raw["os"], raw["variant"], features)


def parse_configuration(data: bytes) -> Configuration:
    """The image configuration `data`. Raises CorruptError."""
    _limit(data, "image configuration")
    try:
        raw = _CONFIGURATION.decode(data)
        process, rootfs = raw["config"], raw["rootfs"]
        volumes = process["Volumes"] or {}
        labels = process["Labels"] or {}
        if len(volumes) > _MAX_VOLUMES or len(labels) > _MAX_STRINGS:
            raise MalformedError("it has too many volumes or labels")
        lists = {key: _strings(process[key], key) for key in ("Env", "Entrypoint", "Cmd")}
        diff_ids = tuple(_items(rootfs["diff_ids"], MAX_LAYERS, "diff_ids"))
    except MalformedError as exc:
        raise CorruptError(f"malformed image configuration: {exc}") from None
    for diff_id in diff_ids:
        _digest(diff_id, "image configuration")
    return Configuration(
        config=ImageConfig(
            user=process["User"],
            env=lists["Env"],
            entrypoint=lists["Entrypoint"],
            cmd=lists["Cmd"],
            working_dir=process["WorkingDir"],
            stop_signal=process["StopSignal"],
            volumes=tuple(volumes),
            labels=labels,
        ),
        diff_ids=diff_ids,
        platform=_platform(raw),
        created=raw["created"] or "",
        rootfs_type=rootfs["type"],
    )


def image_configuration(document: Document, data: bytes) -> Configuration:
    """The configuration `data` that the manifest `document` names.

    Raises CorruptError, ArtifactError, UnsupportedError for anything but a container image.
    """
    kind = "" if document.config is None else document.config.media_type
    artifact = document.artifact_type or ("" if kind in _ANY_CONFIGS else kind)
    try:
        configuration = parse_configuration(data)
    except CorruptError:
        if artifact:
            raise _artifact(artifact) from None
        raise
    if artifact and not configuration.diff_ids:
        raise _artifact(artifact)
    if configuration.rootfs_type not in {"", "layers"}:
        raise UnsupportedError(
            f"its root file system has the type {configuration.rootfs_type[:80]!r}; only layers "
            "are supported"
        )
    for layer in document.layers:
        if layer.media_type.endswith(("+json", "/json")):
            raise _artifact(layer.media_type)
        if layer.media_type.endswith("+encrypted"):
            raise UnsupportedError(
                f"its layer {layer.digest[:160]} is encrypted ({layer.media_type[:120]}), which "
                "criagent does not support; store it decrypted in a registry of yours (skopeo copy "
                "--decryption-key), or pull it on a node whose runtime has the key"
            )
    return configuration


class ArtifactError(UnsupportedError):
    """An OCI artifact where an image is wanted; `kind` is a media type."""

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


def _artifact(kind: str) -> ArtifactError:
    return ArtifactError(
        f"it is an OCI artifact ({_shown(kind)}), not a container image; pull it from a registry "
        "to mount it as a volume",
        _shown(kind),
    )


def _shown(text: str) -> str:
    """Foreign text for a message: cut, without control characters."""
    return text[:200] if text.isprintable() else ascii(text[:200])


def image_layers(document: Document, configuration: Configuration) -> tuple[Layer, ...]:
    """The layers of an image, lowest first. Raises CorruptError when manifest and configuration
    differ.
    """
    descriptors, diff_ids = document.layers, configuration.diff_ids
    if len(descriptors) != len(diff_ids):
        raise CorruptError(
            f"malformed image: {len(descriptors)} layers but {len(diff_ids)} diff IDs"
        )
    return tuple(
        Layer(
            digest=str(descriptor.parsed),
            size=descriptor.size,
            media_type=descriptor.media_type,
            diff_id=diff_id,
            chain_id=chain_id,
        )
        for descriptor, diff_id, chain_id in zip(
            descriptors, diff_ids, chain_ids(diff_ids), strict=True
        )
    )


def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Chain IDs of the layers, lowest first (OCI image specification, config.md)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        below = chain[-1] if chain else ""
        chain.append(str(digest_of(f"{below} {diff_id}".encode())) if below else diff_id)
    return tuple(chain)


def canonical_json(value: object) -> bytes:
    """Compact JSON for documents that we write."""
    return json.dumps(value, separators=(",", ":")).encode()


def is_sound(entry: Descriptor) -> bool:
    """Whether digest and size of a descriptor are possible values."""
    try:
        _check(entry)
    except CorruptError:
        return False
    return True


def _limit(data: bytes, what: str) -> None:
    if len(data) > MAX_DOCUMENT:
        raise CorruptError(f"{what} is larger than {MAX_DOCUMENT} bytes")


def _items(value: Slice | None, limit: int, what: str) -> list[Any]:
    if value is None:
        return []
    if value.length > limit:
        raise MalformedError(f"too many entries: {what} has {value.length}; the limit is {limit}")
    return value.items


def _strings(value: Slice | None, what: str) -> tuple[str, ...]:
    return tuple(_items(value, _MAX_STRINGS, what))


def _check(entry: Descriptor) -> None:
    _digest(entry.digest, "manifest")
    if not 0 <= entry.size < _MAX_SIZE:
        raise CorruptError(
            f"malformed manifest: {entry.digest} has the impossible size {entry.size}"
        )


def _digest(text: str, what: str) -> None:
    try:
        parse_digest(text)
    except InvalidRequestError as exc:
        raise CorruptError(f"malformed {what}: {exc}") from None
