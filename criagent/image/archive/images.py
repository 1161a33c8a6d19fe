# SPDX-License-Identifier: Apache-2.0
"""Rows of the images whose blobs an archive brought."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from criagent.base.errors import CorruptError
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.manifest import (
    MAX_DOCUMENT,
    OCI_MANIFEST,
    image_configuration,
    image_layers,
    parse_document,
)
from criagent.image.documents.reference import parse_reference
from criagent.model.image import Blob, Image

_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedImage:
    """An image whose blobs are in the blob files; its layers are not unpacked yet."""

    image: Image
    blobs: list[Blob]


def archived_images(taken: Mapping[str, Sequence[str]], files: BlobFiles) -> list[ArchivedImage]:
    """The images of `taken`, names by digest of the manifest; one image under all its names.

    Raises CorruptError.
    """
    found: dict[str, ArchivedImage] = {}
    for digest, names in taken.items():
        archived = _archived(digest, names, files)
        if (same := found.get(archived.image.id)) is not None:
            archived = ArchivedImage(image=_joined(same.image, archived.image), blobs=same.blobs)
        found[archived.image.id] = archived
    return list(found.values())


def _archived(digest: str, names: Sequence[str], files: BlobFiles) -> ArchivedImage:
    manifest = files.read(parse_digest(digest), MAX_DOCUMENT)
    document = parse_document(manifest, "")
    if document.config is None:
        raise CorruptError(f"manifest {digest} has no configuration")
    config = document.config.parsed
    content = files.read(config, MAX_DOCUMENT)
    configuration = image_configuration(document, content)
    layers = image_layers(document, configuration)
    references = [parse_reference(name) for name in names]
    image = Image(
        id=str(config),
        manifest_digest=digest,
        config=configuration.config,
        layers=layers,
        repo_tags=tuple(tag for r in references if (tag := r.tagged) is not None),
        repo_digests=tuple(dict.fromkeys(f"{r.name}@{digest}" for r in references)),
        size=len(content) + sum(layer.size for layer in layers),
        platform=str(configuration.platform),
        created=configuration.created,
    )
    blobs = [
        Blob(digest=digest, size=len(manifest), media_type=OCI_MANIFEST),
        Blob(digest=str(config), size=len(content), media_type=_CONFIG),
        *(Blob(digest=x.digest, size=x.size, media_type=x.media_type) for x in layers),
    ]
    return ArchivedImage(image=image, blobs=blobs)


def _joined(one: Image, other: Image) -> Image:
    """The same image with the names of both."""
    return dataclasses.replace(
        one,
        repo_tags=tuple(dict.fromkeys((*one.repo_tags, *other.repo_tags))),
        repo_digests=tuple(dict.fromkeys((*one.repo_digests, *other.repo_digests))),
    )
