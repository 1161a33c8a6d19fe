"""Image archives: OCI layouts (image-layout.md) and `docker save` tars, read and written.

Only listed members are read, by their exact names; nothing is extracted to a path of the archive's
choosing. Synchronous, for the `fs` executor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from criagent.errors import CorruptError, InvalidRequestError, NotFoundError
from criagent.image.blobs import BlobFiles, disk_full, removed_on_error
from criagent.image.decompress import BadLayerError, is_compressed, plain_chunks
from criagent.image.digest import Digest, digest_of, parse_digest
from criagent.image.manifest import (
    MAX_DOCUMENT,
    Descriptor,
    Document,
    Platform,
    canonical_json,
    choose_platform,
    host_platform,
    image_configuration,
    parse_document,
)
from criagent.image.pull import image_layers
from criagent.image.reference import Reference, parse_reference
from criagent.model import Blob, Image

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_MAX_MEMBERS = 100_000
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedImage:
    """An image whose blobs were taken into the blob files; its layers are not unpacked yet."""

    image: Image
    blobs: list[Blob]


class _Listed(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class _Entry(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class _Index(msgspec.Struct, rename="camel"):
    manifests: list[_Entry]


def read_archive(path: Path, files: BlobFiles) -> list[ArchivedImage]:
    """Take the blobs of every image for this platform into `files`.

    Raises InvalidRequestError for what is no image archive, CorruptError for wrong content,
    NotFoundError when no image is for this platform, UnsupportedError for schema 1.
    """
    try:
        with _plain(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = _Members(tar)
            if "index.json" in members.names and "oci-layout" in members.names:
                return _read_layout(members, files)
            if "manifest.json" in members.names:
                return _read_docker(members, files)
    except (tarfile.TarError, EOFError, BadLayerError, RecursionError, ValueError) as exc:
        raise InvalidRequestError(f"not an image archive: {exc}") from None
    raise InvalidRequestError("not an image archive: neither index.json nor manifest.json in it")


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[IO[bytes]]:
    """The archive, decompressed beside itself when it is compressed."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if not is_compressed(magic):
            yield file
            return
        plain = path.with_name(path.name + ".plain")
        try:
            with disk_full(path), plain.open("wb+") as target:
                for chunk in plain_chunks(file, lambda _: None):
                    target.write(chunk)
                target.seek(0)
                yield target
        finally:
            plain.unlink(missing_ok=True)


class _Members:
    """Regular members of an archive by name."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.names: dict[str, tarfile.TarInfo] = {}
        for number, member in enumerate(tar):
            if number >= _MAX_MEMBERS:
                raise InvalidRequestError(f"the archive has more than {_MAX_MEMBERS} members")
            if member.size < 0:  # tarfile would go backwards
                raise InvalidRequestError(f"the archive's {member.name[:200]!r} has no real size")
            if (member.isreg() and not member.sparse) or member.issym() or member.islnk():
                self.names[member.name.removeprefix("./")] = member

    def open(self, name: str) -> IO[bytes]:
        """The member's content; Docker links equal layers to one another."""
        for _ in range(2):
            member = self.names.get(name)
            if member is None:
                raise CorruptError(f"the archive lacks {name[:200]!r}")
            if member.isreg():
                file = self._tar.extractfile(member)
                if file is not None:
                    return file
            base = Path(name).parent if member.issym() else Path()
            parts: list[str] = []
            for part in (base / member.linkname).parts:
                if part == ".." and parts:
                    parts.pop()
                elif part != "..":
                    parts.append(part)
            name = "/".join(parts)
        raise CorruptError(f"the archive has {name[:200]!r} as a link to a link")

    def small(self, name: str) -> bytes:
        """A document. Raises CorruptError when it is larger than documents are."""
        with self.open(name) as file:
            data = file.read(MAX_DOCUMENT + 1)
        if len(data) > MAX_DOCUMENT:
            raise CorruptError(f"{name} is larger than {MAX_DOCUMENT} bytes")
        return data


def _read_layout(members: _Members, files: BlobFiles) -> list[ArchivedImage]:
    try:
        index = msgspec.json.decode(members.small("index.json"), type=_Index)
    except msgspec.MsgspecError as exc:
        raise CorruptError(f"malformed index.json: {exc}") from None
    found: dict[str, ArchivedImage] = {}
    for entry in index.manifests:
        if entry.platform is not None and not _fits(entry.platform):
            continue
        manifest = _manifest_of(members, Descriptor(entry.digest, entry.size, entry.media_type))
        if manifest is None:
            continue
        digest, document, content = manifest
        files.store(digest, content)
        archived = _take(members, files, digest, document, _names(entry))
        if (same := found.get(archived.image.id)) is not None:
            archived = ArchivedImage(image=_joined(same.image, archived.image), blobs=same.blobs)
        found[archived.image.id] = archived
    if not found:
        raise NotFoundError(f"the archive has no image for {host_platform()}")
    return list(found.values())


def _fits(platform: Platform) -> bool:
    here = host_platform()
    return (platform.os, platform.architecture) == (here.os, here.architecture)


def _manifest_of(
    members: _Members, descriptor: Descriptor
) -> tuple[Digest, Document, bytes] | None:
    """The manifest for this platform below `descriptor`; None when another platform's only."""
    for _ in range(2):
        digest = descriptor.parsed
        content = _checked(members, digest)
        document = parse_document(content, descriptor.media_type)
        if not document.is_index:
            return digest, document, content
        try:
            descriptor = choose_platform(document, host_platform())
        except NotFoundError:
            return None
    raise CorruptError("malformed archive: an index within an index")


def _take(
    members: _Members, files: BlobFiles, digest: Digest, document: Document, tags: Sequence[str]
) -> ArchivedImage:
    config = document.config
    if config is None:
        raise CorruptError(f"manifest {digest} has no configuration")
    content = _checked(members, config.parsed)
    image_layers(document, image_configuration(document, content))  # malformed ones cost no disk
    files.store(config.parsed, content)
    layers = document.layers or []
    for layer in layers:
        _take_blob(members, files, layer.parsed, layer.size)
    return _archived(digest, document, content, tags)


def _archived(
    digest: Digest, document: Document, config_content: bytes, tags: Sequence[str]
) -> ArchivedImage:
    configuration = image_configuration(document, config_content)
    layers = image_layers(document, configuration)
    if document.config is None:
        raise CorruptError(f"manifest {digest} has no configuration")
    config = document.config.parsed
    references = [parse_reference(tag) for tag in tags]
    image = Image(
        id=str(config),
        manifest_digest=str(digest),
        config=configuration.config,
        layers=layers,
        repo_tags=tuple(tag for r in references if (tag := r.tagged) is not None),
        repo_digests=tuple(dict.fromkeys(f"{r.name}@{digest}" for r in references)),
        size=len(config_content) + sum(layer.size for layer in layers),
        platform=str(configuration.platform),
        created=configuration.created,
    )
    blobs = [
        Blob(digest=str(digest), size=0, media_type=_MANIFEST),
        Blob(digest=str(config), size=len(config_content), media_type=_CONFIG),
        *(Blob(digest=x.digest, size=x.size, media_type=x.media_type) for x in layers),
    ]
    return ArchivedImage(image=image, blobs=blobs)


def _read_docker(members: _Members, files: BlobFiles) -> list[ArchivedImage]:
    try:
        listed = msgspec.json.decode(members.small("manifest.json"), type=list[_Listed])
    except msgspec.MsgspecError as exc:
        raise CorruptError(f"malformed manifest.json: {exc}") from None
    found = []
    for entry in listed:
        config = members.small(entry.config)
        files.store(digest_of(config), config)
        layers = []
        for name in entry.layers:
            digest, size = _take_unnamed(members, files, name)
            layers.append({"mediaType": _LAYER, "digest": str(digest), "size": size})
        manifest = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": {
                    "mediaType": _CONFIG,
                    "digest": str(digest_of(config)),
                    "size": len(config),
                },
                "layers": layers,
            }
        )
        files.store(digest_of(manifest), manifest)
        document = parse_document(manifest, _MANIFEST)
        tags = [str(_named(tag)) for tag in entry.repo_tags or ()]
        found.append(_archived(digest_of(manifest), document, config, tags))
    return found


def _checked(members: _Members, digest: Digest) -> bytes:
    content = members.small(f"blobs/{digest.algorithm}/{digest.hex}")
    hasher = digest.hasher()
    hasher.update(content)
    if hasher.hexdigest() != digest.hex:
        raise CorruptError(f"the archive's blob {digest} has other content")
    return content


def _take_blob(members: _Members, files: BlobFiles, digest: Digest, size: int) -> None:
    if files.has(digest):
        return
    part = files.own_part(digest)
    name = f"blobs/{digest.algorithm}/{digest.hex}"
    with removed_on_error(part):
        with disk_full(part), members.open(name) as source, part.open("wb") as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
        files.verify_part(digest, size, part)
        files.finish(digest, part)


def _take_unnamed(members: _Members, files: BlobFiles, name: str) -> tuple[Digest, int]:
    """A Docker layer, whose digest only its content tells."""
    hasher, size = hashlib.sha256(), 0
    with members.open(name) as source:
        while chunk := source.read(_CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    digest = Digest("sha256", hasher.hexdigest())
    if not files.has(digest):
        part = files.own_part(digest)
        with removed_on_error(part):
            with disk_full(part), members.open(name) as source, part.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
            files.finish(digest, part)
    return digest, size


def _names(entry: _Entry) -> list[str]:
    for key in _NAMES:
        name = (entry.annotations or {}).get(key, "")
        if "/" in name or ":" in name:
            return [str(_named(name))]
    return []


def _named(text: str) -> Reference:
    return parse_reference(text).with_default_tag()


def _joined(one: Image, other: Image) -> Image:
    """The same image with the names of both."""
    return dataclasses.replace(
        one,
        repo_tags=tuple(dict.fromkeys((*one.repo_tags, *other.repo_tags))),
        repo_digests=tuple(dict.fromkeys((*one.repo_digests, *other.repo_digests))),
    )


def write_archive(chosen: Sequence[tuple[Image, str | None]], files: BlobFiles, path: Path) -> None:
    """Write images, each under the given tag or all of its own, to `path`.

    Raises NotFoundError when a blob is not on this node any more.
    """
    manifests: list[dict[str, object]] = []
    listed: list[dict[str, object]] = []
    digests: dict[str, None] = {}
    for image, wanted in chosen:
        manifest = parse_digest(image.manifest_digest)
        tags = [wanted] if wanted is not None else list(image.repo_tags)
        names: list[str | None] = [*tags] or [None]
        for tag in names:
            entry: dict[str, object] = {
                "mediaType": _MANIFEST,
                "digest": str(manifest),
                "size": _path(files, manifest).stat().st_size,
            }
            if tag is not None:
                entry["annotations"] = {_NAMES[0]: tag, _NAMES[1]: tag.rpartition(":")[2]}
            manifests.append(entry)
        listed.append(
            {
                "Config": _member(image.id),
                "RepoTags": tags,
                "Layers": [_member(layer.digest) for layer in image.layers],
            }
        )
        for digest in (image.manifest_digest, image.id, *(x.digest for x in image.layers)):
            digests[digest] = None
    with disk_full(path), tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
        for digest in digests:
            tar.add(_path(files, parse_digest(digest)), _member(digest), filter=_anonymous)
        _add(tar, "index.json", canonical_json({"schemaVersion": 2, "manifests": manifests}))
        _add(tar, "manifest.json", json.dumps(listed).encode())


def _path(files: BlobFiles, digest: Digest) -> Path:
    if not files.has(digest):
        raise NotFoundError(f"blob {digest} is not on this node; pull the image again")
    return files.path(digest)


def _member(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.mode = 0o644
    tar.addfile(member, io.BytesIO(content))


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    member.mtime = 0
    return member
