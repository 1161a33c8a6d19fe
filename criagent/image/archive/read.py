# SPDX-License-Identifier: Apache-2.0
"""Read an archive: take the blobs of every image for this machine. Runs in the unpack worker.

A bad entry affects no other: the result names it and the reason why it was skipped.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from criagent.base.errors import (
    AgentError,
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedError,
)
from criagent.image.archive.contents import Contents, Skipped, plain_copy
from criagent.image.archive.members import Member, Members
from criagent.image.archive.room import Room
from criagent.image.blobs import BlobFiles, disk_full, removed_on_error
from criagent.image.documents import gojson
from criagent.image.documents.choose import (
    UNREADABLE,
    Answer,
    Found,
    Search,
    Wanted,
    is_attestation,
)
from criagent.image.documents.digest import Digest, digest_of
from criagent.image.documents.gojson import STRING, STRINGS, MalformedError, Struct
from criagent.image.documents.manifest import (
    MAX_ENTRIES,
    MAX_LAYERS,
    OCI_MANIFEST,
    Configuration,
    Descriptor,
    Document,
    canonical_json,
    descriptor_of,
    image_configuration,
    image_layers,
    parse_configuration,
    parse_document,
)
from criagent.image.documents.platforms import Platform, host_platform, rank
from criagent.image.documents.reference import parse_reference
from criagent.image.tar.decompress import BadLayerError, compression, is_compressed, plain_chunks

_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_NAME, _REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"
_LISTED = Struct({"Config": STRING, "RepoTags": STRINGS, "Layers": STRINGS})
_MAX_NAMES = 100  # of one entry
_MAX_NAMES_OF_IMAGE = 1000
_MAX_SKIPPED = 100
_BAD_ENTRY = (NotFoundError, CorruptError, UnsupportedError, InvalidRequestError)


class _OtherPlatformError(NotFoundError):
    """The entry is for another machine, which is not an error."""

    def __init__(self, platform: Platform) -> None:
        super().__init__(f"the image is for {platform}, this node is {host_platform()}")
        self.platform = str(platform)


def read_archive(path: Path, files: BlobFiles) -> Contents:
    """Take the blobs of every image for this platform into `files`.

    Raises InvalidRequestError for a file that is not an image archive, ExhaustedError when the disk
    is full. When nothing can be taken, the first entry's CorruptError, UnsupportedError,
    InvalidRequestError or NotFoundError.
    """
    room = Room(path.parent)
    try:
        with _plain(path, room) as file:
            return _Reader(Members(file), files, room).run()
    except BadLayerError as exc:
        raise InvalidRequestError(f"not an image archive: {exc}") from None


@contextlib.contextmanager
def _plain(path: Path, room: Room) -> Iterator[IO[bytes]]:
    """The archive, decompressed beside itself when it is compressed."""
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if not is_compressed(magic.ljust(4, b"\0")):
            yield file
            return
        plain = plain_copy(path)
        try:
            with plain.open("wb+") as target:
                with disk_full(path):
                    for chunk in plain_chunks(file, lambda _: None):
                        room.take(len(chunk))
                        target.write(chunk)
                    target.flush()
                yield target
        finally:
            plain.unlink(missing_ok=True)


class _Reader:
    def __init__(self, members: Members, files: BlobFiles, room: Room) -> None:
        self._members = members
        self._files = files
        self._room = room
        self._host = host_platform()
        self._contents = Contents()
        self._names: dict[str, dict[str, None]] = {}  # by digest of the manifest
        self._failures: list[AgentError] = []
        self._taken: dict[Member, tuple[Digest, str]] = {}  # layers of Docker archives

    def run(self) -> Contents:
        """Take what there is."""
        if "index.json" in self._members and "oci-layout" in self._members:
            self._layout()
        elif "manifest.json" in self._members:
            self._docker()
        elif "repositories" in self._members:
            raise InvalidRequestError(
                "the archive was saved by Docker before 1.10 and has no manifest.json; save it "
                "again with a newer version"
            )
        else:
            raise InvalidRequestError(
                "not an image archive: it has neither oci-layout with index.json nor manifest.json"
            )
        if not self._names:
            raise self._nothing()
        self._contents.images = {digest: list(names) for digest, names in self._names.items()}
        return self._contents

    def _nothing(self) -> AgentError:
        """The error when no entry could be taken: that of the first broken one, if any."""
        others = [e for e in self._failures if isinstance(e, _OtherPlatformError)]
        if len(others) == len(self._failures):
            offered = sorted({error.platform for error in others})[:20]
            return NotFoundError(
                f"the archive has no image for {self._host}; it has {', '.join(offered) or 'none'}"
            )
        first = next(e for e in self._failures if not isinstance(e, _OtherPlatformError))
        more = len(self._failures) - 1
        text = str(first)[:500] + (f" (and {more} more entries cannot be imported)" if more else "")
        # the worker passes on the plain kinds of errors alone
        return UnsupportedError(text) if isinstance(first, UnsupportedError) else type(first)(text)

    def _attempt(self, entry: str, take: Callable[[Any], None], value: Any) -> None:
        """Take one entry; a bad one is recorded."""
        try:
            take(value)
        except _BAD_ENTRY as exc:
            self._failures.append(exc)
            self._skip(entry, exc)

    def _skip(self, entry: str, why: AgentError) -> None:
        if len(self._contents.skipped) < _MAX_SKIPPED:
            entry = entry if entry.isprintable() else ascii(entry)
            self._contents.skipped.append(Skipped(entry[:200], str(why)[:500]))

    def _layout(self) -> None:
        try:
            index = gojson.parse(self._members.small("index.json"))
        except MalformedError as exc:
            raise CorruptError(f"malformed index.json: {exc}") from None
        if not isinstance(index, gojson.Members):
            raise CorruptError("malformed index.json: expected an object")
        entries = None
        for key, value in index:
            if gojson.fold(key) == "MANIFESTS":
                entries = value
        for number, value in enumerate(_entries(entries, "index.json")):
            self._attempt(_label(value, f"entry {number} of index.json"), self._take_entry, value)

    def _take_entry(self, value: Any) -> None:
        entry = descriptor_of(value)
        if is_attestation(entry):
            return
        if entry.platform is not None and rank(entry.platform, self._host) is None:
            raise _OtherPlatformError(entry.platform)
        names = self._layout_names(entry)
        content = self._document(entry)
        found = self._searched(parse_document(content, entry.media_type), entry)
        config = found.document.config
        if config is None:
            raise CorruptError(f"manifest {found.digest} has no configuration")
        config_content = self._document(config)
        configuration = image_configuration(found.document, config_content)
        if not found.content:
            self._check_platform(configuration)
        image_layers(found.document, configuration)
        missing = {layer.digest: layer for layer in found.document.layers}
        missing = {d: x for d, x in missing.items() if not self._files.has(x.parsed)}
        for layer in missing.values():  # an image without one of its layers uses no disk
            self._members.find(_blob_name(layer.parsed))
        for layer in missing.values():
            self._take_layer(layer)
        self._store(config.parsed, config_content)
        self._store(found.digest, found.content or content)
        self._add(found.digest, names)

    def _searched(self, top: Document, entry: Descriptor) -> Found:
        search = Search(top, entry.parsed, self._host)
        step = search.start()
        while isinstance(step, Wanted):
            try:
                answer: Answer | AgentError = Answer(self._document(step.descriptor))
            except UNREADABLE as exc:
                answer = exc
            step = search.next(answer)
        return step

    def _check_platform(self, configuration: Configuration) -> None:
        """A configuration without a platform fits any."""
        stated = configuration.platform
        if stated.architecture and rank(stated, self._host) is None:
            raise _OtherPlatformError(stated)

    def _document(self, descriptor: Descriptor) -> bytes:
        """A manifest, index or configuration, verified."""
        digest = _digest(descriptor)
        content = self._members.small(_blob_name(digest))
        hasher = digest.hasher()
        hasher.update(content)
        if hasher.hexdigest() != digest.hex:
            raise CorruptError(f"the archive's blob {digest} does not match its digest")
        return content

    def _take_layer(self, layer: Descriptor) -> None:
        digest = layer.parsed
        member = self._members.find(_blob_name(digest))
        if member.size != layer.size:
            raise CorruptError(
                f"the archive's blob {digest} has {member.size} bytes instead of {layer.size}"
            )
        self._copy(member, digest)

    def _copy(self, member: Member, digest: Digest) -> None:
        """Make a blob of a member's content. Raises CorruptError for a wrong digest."""
        hasher = digest.hasher()
        part = self._files.own_part(digest)
        with removed_on_error(part):
            with disk_full(part), part.open("wb") as target:
                for chunk in self._members.chunks(member):
                    self._room.take(len(chunk))
                    target.write(chunk)
                    hasher.update(chunk)
            if hasher.hexdigest() != digest.hex:
                raise CorruptError(f"the archive's blob {digest} does not match its digest")
            self._files.finish(digest, part)

    def _store(self, digest: Digest, content: bytes) -> None:
        self._room.take(len(content))
        self._files.store(digest, content)

    def _layout_names(self, entry: Descriptor) -> list[str]:
        """Names as in `ctr images import`: a tag alone is not a name."""
        name, reference = (entry.annotations.get(key, "") for key in (_NAME, _REF_NAME))
        if not name and any(sign in reference for sign in "/:@"):
            name = reference
        return self._good_names([name] if name else [])

    def _good_names(self, texts: list[str]) -> list[str]:
        """Names in full. Raises InvalidRequestError when there are some, but none is valid."""
        names: list[str] = []
        failure: InvalidRequestError | None = None
        for text in texts[:_MAX_NAMES]:
            try:
                names.append(str(parse_reference(text).with_default_tag()))
            except InvalidRequestError as exc:
                failure = failure or exc
                self._skip(f"name {text[:160]!r}", exc)
        if failure is not None and not names:
            raise failure
        return names

    def _add(self, digest: Digest, names: list[str]) -> None:
        known = self._names.setdefault(str(digest), {})
        known.update(dict.fromkeys(names[: _MAX_NAMES_OF_IMAGE - len(known)]))

    def _docker(self) -> None:
        try:
            listed = gojson.parse(self._members.small("manifest.json"))
        except MalformedError as exc:
            raise CorruptError(f"malformed manifest.json: {exc}") from None
        for number, value in enumerate(_entries(listed, "manifest.json")):
            self._attempt(f"entry {number} of manifest.json", self._take_listed, value)

    def _take_listed(self, value: Any) -> None:
        try:
            raw = _LISTED(value, _LISTED.zero())
        except MalformedError as exc:
            raise CorruptError(f"malformed manifest.json: {exc}") from None
        layers = raw["Layers"].items if raw["Layers"] else []
        if len(layers) > MAX_LAYERS:
            raise CorruptError(f"malformed manifest.json: more than {MAX_LAYERS} layers")
        names = self._good_names(raw["RepoTags"].items if raw["RepoTags"] else [])
        config = self._members.small(raw["Config"])
        configuration = parse_configuration(config)
        self._check_platform(configuration)
        if len(configuration.diff_ids) != len(layers):
            raise CorruptError(
                f"malformed image: {len(layers)} layers but {len(configuration.diff_ids)} diff IDs"
            )
        found = [self._members.find(name) for name in layers]  # all of them, before any is taken
        manifest = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {
                    "mediaType": _CONFIG,
                    "digest": str(digest_of(config)),
                    "size": len(config),
                },
                "layers": [self._take_unnamed(member) for member in found],
            }
        )
        image_configuration(parse_document(manifest, OCI_MANIFEST), config)
        self._store(digest_of(config), config)
        self._store(digest_of(manifest), manifest)
        self._add(digest_of(manifest), names)

    def _take_unnamed(self, member: Member) -> dict[str, object]:
        """The descriptor of a Docker layer, whose digest only its content tells."""
        if member not in self._taken:
            hasher = hashlib.sha256()
            for chunk in self._members.chunks(member):
                hasher.update(chunk)
            digest = Digest("sha256", hasher.hexdigest())
            if not self._files.has(digest):
                self._copy(member, digest)
            packed = compression(self._members.start(member))
            self._taken[member] = digest, f"{_LAYER}+{packed}" if packed else _LAYER
        digest, kind = self._taken[member]
        return {"mediaType": kind, "digest": str(digest), "size": member.size}


def _entries(value: Any, where: str) -> list[Any]:
    """The entries of a list, not decoded yet. Raises CorruptError."""
    if value is not None and (not isinstance(value, list) or isinstance(value, gojson.Members)):
        raise CorruptError(f"malformed {where}: expected a list of images")
    entries: list[Any] = value or []
    if len(entries) > MAX_ENTRIES:
        raise CorruptError(f"malformed {where}: more than {MAX_ENTRIES} entries")
    return entries


def _label(value: Any, default: str) -> str:
    """The name of an index entry for people, even if it cannot be decoded."""
    fields = dict(value) if isinstance(value, gojson.Members) else {}
    annotations = fields.get("annotations")
    names = dict(annotations) if isinstance(annotations, gojson.Members) else {}
    for text in (names.get(_NAME), names.get(_REF_NAME), fields.get("digest")):
        if text and isinstance(text, str) and not isinstance(text, gojson.Number):
            return text[:160]
    return default


def _digest(descriptor: Descriptor) -> Digest:
    try:
        return descriptor.parsed
    except InvalidRequestError as exc:
        raise CorruptError(f"malformed index: {exc}") from None


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"
