# SPDX-License-Identifier: Apache-2.0
"""The layers of an OCI artifact as files of a volume (KEP-4639).

A layer is a file, under its title (`org.opencontainers.image.title`, or `org.cncf.model.filepath`
of ModelPack). It is an archive instead only where its maker says so with the digest of its content:
ORAS for a directory, ModelPack by the media type. Other media types say nothing: ORAS gives that of
a tar archive to any file. Layers without a title are not in the volume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from criagent.base.errors import CorruptError, UnsupportedError
from criagent.image.documents import gojson
from criagent.image.documents.digest import digest_of
from criagent.image.documents.gojson import MalformedError
from criagent.image.documents.manifest import Descriptor, Document, canonical_json, chain_ids
from criagent.model.image import Layer

_TITLES = ("org.opencontainers.image.title", "org.cncf.model.filepath")
_UNPACK, _CONTENT = "io.deis.oras.content.unpack", "io.deis.oras.content.digest"
_MODEL = "application/vnd.cncf.model."
_ARCHIVES = (".tar", ".tar+gzip", ".tar+zstd")
_PATH_MAX = 4095
_NAME_MAX = 255
_WHITEOUT = ".wh."
_DIGEST = "sha256:"


@dataclass(frozen=True, slots=True)
class _Part:
    descriptor: Descriptor
    path: str  # "" for an archive
    diff_id: str


def artifact_layers(document: Document, config: bytes, kind: str) -> tuple[Layer, ...]:
    """The layers to mount, lowest first, of the artifact `document` of that kind.

    Raises CorruptError for a title that cannot be a file of a volume, UnsupportedError for an
    artifact without titles.
    """
    contents = _model_contents(config, len(document.layers))
    parts = [
        part
        for number, descriptor in enumerate(document.layers)
        if (part := _part(descriptor, contents[number] if contents else "")) is not None
    ]
    if not parts:
        raise UnsupportedError(
            f"it is an OCI artifact ({kind}) without files: none of its {len(document.layers)} "
            "layers has a title (org.opencontainers.image.title)"
        )
    _check_paths([part.path for part in parts if part.path])
    chain = chain_ids(tuple(part.diff_id for part in parts))
    return tuple(
        Layer(
            digest=str(part.descriptor.parsed),
            size=part.descriptor.size,
            media_type=part.descriptor.media_type,
            diff_id=part.diff_id,
            chain_id=chain_id,
            path=part.path,
        )
        for part, chain_id in zip(parts, chain, strict=True)
    )


def _part(descriptor: Descriptor, content: str) -> _Part | None:
    """The layer in the volume, None for one without a title; `content` is its digest unpacked."""
    notes = descriptor.annotations
    title = next((notes[key] for key in _TITLES if notes.get(key)), "")
    if not title:
        return None
    path = _path(title)
    if notes.get(_UNPACK) == "true":
        content = notes.get(_CONTENT, "")
    elif not _is_model_archive(descriptor):
        content = ""
    if content.startswith(_DIGEST):
        return _Part(descriptor, "", content)
    # No archive has this digest, so no layer of an image is taken for the file.
    made = digest_of(canonical_json(["file", path, str(descriptor.parsed)]))
    return _Part(descriptor, path, str(made))


def _is_model_archive(descriptor: Descriptor) -> bool:
    kind = descriptor.media_type
    return kind.startswith(_MODEL) and kind.endswith(_ARCHIVES)


def _path(title: str) -> str:
    """The title as a path below the volume. Raises CorruptError for one that is none."""
    path = title.removeprefix("./")
    names = path.split("/")
    if not path.isprintable() or len(path.encode()) > _PATH_MAX:
        why = "is too long or has characters that cannot be printed"
    elif path.startswith("/"):
        why = "is absolute"
    elif {"", ".", ".."}.intersection(names):
        why = "leads through '.', '..' or an empty name"
    elif any(name.startswith(_WHITEOUT) for name in names):
        why = "has a name that would hide files"
    elif any(len(name.encode()) > _NAME_MAX for name in names):
        why = f"has a name of more than {_NAME_MAX} bytes"
    else:
        return path
    raise CorruptError(f"malformed artifact: the title {title[:200]!a} {why}")


def _check_paths(paths: Sequence[str]) -> None:
    """Raises CorruptError when one file is another one, or its directory."""
    seen = set(paths)
    if len(seen) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise CorruptError(f"malformed artifact: two layers have the title {twice[:200]!r}")
    for path in paths:
        above = path
        while above := above.rpartition("/")[0]:
            if above in seen:
                raise CorruptError(
                    f"malformed artifact: the title {above[:200]!r} is a file, and a directory of "
                    "another title"
                )


def _model_contents(config: bytes, count: int) -> Sequence[str]:
    """Digests of the unpacked layers in a ModelPack configuration (model-spec, config.md), or ()"""
    try:
        document: Any = gojson.plain(gojson.parse(config))
    except MalformedError:
        return ()
    for key in ("modelfs", "diffIds"):
        document = document.get(key) if isinstance(document, Mapping) else None
    if not isinstance(document, list) or len(document) != count:
        return ()
    return [one if isinstance(one, str) else "" for one in document]
