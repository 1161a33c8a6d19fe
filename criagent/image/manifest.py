"""Manifests, indexes and image configurations: OCI and Docker documents, decoded with limits."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from typing import Annotated

import msgspec

from criagent.errors import CorruptError, InvalidRequestError, NotFoundError, UnsupportedError
from criagent.image.digest import Digest, digest_of, parse_digest
from criagent.model import ImageConfig

MAX_DOCUMENT = 8 << 20  # the registry must not make us hold more; the specification asks for 4 MiB

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPTED = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)
_IMAGE_CONFIGS = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
_INDEXES = {OCI_INDEX, DOCKER_LIST}

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le"}
_MAX_LAYERS = 500
_MAX_ENTRIES = 1000

Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Platform(msgspec.Struct, frozen=True):
    """A platform as indexes and configurations spell it."""

    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """What a document says of another one or of a layer."""

    digest: str
    size: Size
    media_type: str = ""
    platform: Platform | None = None
    urls: list[str] | None = None  # of a layer that registries do not distribute

    @property
    def parsed(self) -> Digest:
        """The digest, validated."""
        return parse_digest(self.digest)


class Document(msgspec.Struct, frozen=True, rename="camel"):
    """A manifest (`config` and `layers`) or an index (`manifests`), never both."""

    schema_version: int = 0
    media_type: str = ""
    artifact_type: str = ""
    config: Descriptor | None = None
    layers: list[Descriptor] | None = None
    manifests: list[Descriptor] | None = None

    @property
    def is_index(self) -> bool:
        """Whether it lists manifests by platform."""
        return self.manifests is not None


class _Process(msgspec.Struct, frozen=True, rename="pascal"):
    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    stop_signal: str | None = None
    volumes: dict[str, object] | None = None
    labels: dict[str, str] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] | None  # null for an image without layers


class _Configuration(msgspec.Struct, frozen=True):
    rootfs: _RootFs
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    config: _Process | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """An image configuration: what containers are made of, and the layers' diff IDs."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    platform: Platform
    created: str


def parse_document(data: bytes, media_type: str) -> Document:
    """The manifest or index `data`, served as `media_type`.

    Raises CorruptError for what is malformed or ambiguous, UnsupportedError for schema 1.
    """
    _limit(data, "manifest")
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise CorruptError(f"malformed manifest: {exc}") from None
    if document.schema_version == 1:
        raise UnsupportedError("the image has a schema 1 manifest; push it again with a newer tool")
    if document.is_index == (document.layers is not None or document.config is not None):
        raise CorruptError("malformed manifest: want either manifests, or config and layers")
    kind = media_type.partition(";")[0].strip()
    if kind in ACCEPTED and (kind in _INDEXES) != document.is_index:
        raise CorruptError(f"malformed manifest: content is not the {kind} that it was served as")
    if document.media_type in ACCEPTED and (document.media_type in _INDEXES) != document.is_index:
        raise CorruptError(
            f"malformed manifest: content is not its mediaType {document.media_type}"
        )
    if not document.is_index and document.config is None:  # no layers may be null, as Go writes it
        raise CorruptError("malformed manifest: config must be there")
    if len(document.layers or ()) > _MAX_LAYERS or len(document.manifests or ()) > _MAX_ENTRIES:
        raise CorruptError("malformed manifest: too many entries")
    for entry in (*(document.layers or ()), *(document.manifests or ())):
        _checked(entry)
    if document.config is not None:
        _checked(document.config)
    return document


def parse_configuration(data: bytes) -> Configuration:
    """The image configuration `data`. Raises CorruptError."""
    _limit(data, "image configuration")
    try:
        raw = msgspec.json.decode(data, type=_Configuration)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise CorruptError(f"malformed image configuration: {exc}") from None
    diff_ids = tuple(raw.rootfs.diff_ids or ())
    for diff_id in diff_ids:
        _digest(diff_id)
    process = raw.config or _Process()
    return Configuration(
        config=ImageConfig(
            user=process.user or "",
            env=tuple(process.env or ()),
            entrypoint=tuple(process.entrypoint or ()),
            cmd=tuple(process.cmd or ()),
            working_dir=process.working_dir or "",
            stop_signal=process.stop_signal or "",
            volumes=tuple(process.volumes or ()),
            labels=dict(process.labels or {}),
        ),
        diff_ids=diff_ids,
        platform=Platform(raw.architecture, raw.os, raw.variant),
        created=raw.created or "",
    )


def image_configuration(document: Document, data: bytes) -> Configuration:
    """The configuration `data` that the manifest `document` names.

    Raises CorruptError, UnsupportedError for an artifact that is no container image.
    """
    try:
        return parse_configuration(data)
    except CorruptError:
        kind = "" if document.config is None else document.config.media_type
        if document.artifact_type or (kind and kind not in _IMAGE_CONFIGS):
            kind = (document.artifact_type or kind)[:200]
            raise UnsupportedError(
                f"it is an OCI artifact ({kind}), not a container image; only images can be "
                "pulled, run and mounted"
            ) from None
        raise


def host_platform() -> Platform:
    """The platform of this machine."""
    machine = platform.machine()
    return Platform(_ARCHITECTURES.get(machine, machine), "linux", "")


def choose_platform(index: Document, wanted: Platform) -> Descriptor:
    """The entry of `index` for `wanted`; raises NotFoundError that names what there is."""
    entries = index.manifests or []
    fitting = [
        e
        for e in entries
        if e.platform is not None
        and (e.platform.os, e.platform.architecture) == (wanted.os, wanted.architecture)
    ]
    # A newer variant is better, but only the plain one is sure to run on every machine.
    plain = [e for e in fitting if e.platform and e.platform.variant in {"", wanted.variant, "v8"}]
    if found := plain or fitting:
        return found[0]
    if len(entries) == 1 and entries[0].platform is None:
        return entries[0]
    offered = sorted(str(e.platform) for e in entries if e.platform is not None)
    raise NotFoundError(f"no image for platform {wanted}; the index offers {offered}")


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


def _limit(data: bytes, what: str) -> None:
    if len(data) > MAX_DOCUMENT:
        raise CorruptError(f"{what} is larger than {MAX_DOCUMENT} bytes")


def _checked(entry: Descriptor) -> None:
    _digest(entry.digest)


def _digest(text: str) -> None:
    try:
        parse_digest(text)
    except InvalidRequestError as exc:
        raise CorruptError(f"malformed manifest: {exc}") from None
