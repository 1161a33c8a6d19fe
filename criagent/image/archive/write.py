# SPDX-License-Identifier: Apache-2.0
"""Images written as one archive that is both an OCI layout and a Docker archive."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from criagent.base.errors import NotFoundError
from criagent.image.archive.room import Room
from criagent.image.blobs import BlobFiles, disk_full
from criagent.image.documents.digest import Digest, parse_digest
from criagent.image.documents.manifest import OCI_MANIFEST, canonical_json
from criagent.model.image import Image

_NAME, _REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"


def write_archive(chosen: Sequence[tuple[Image, str | None]], files: BlobFiles, path: Path) -> None:
    """Write images, each under the given tag or all of its own, to `path`.

    Raises NotFoundError when a blob is no longer on this node, ExhaustedError when the disk is
    full.
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
                "mediaType": OCI_MANIFEST,
                "digest": str(manifest),
                "size": _path(files, manifest).stat().st_size,
            }
            if tag is not None:
                entry["annotations"] = {_NAME: tag, _REF_NAME: tag.rpartition(":")[2]}
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
    blobs = [_path(files, parse_digest(digest)) for digest in digests]
    Room(path.parent).take(sum(blob.stat().st_size for blob in blobs))
    with disk_full(path), tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "oci-layout", canonical_json({"imageLayoutVersion": "1.0.0"}))
        for digest, blob in zip(digests, blobs, strict=True):
            tar.add(blob, _member(digest), filter=_anonymous)
        _add(tar, "index.json", canonical_json({"schemaVersion": 2, "manifests": manifests}))
        _add(tar, "manifest.json", json.dumps(listed).encode())


def _path(files: BlobFiles, digest: Digest) -> Path:
    if not files.has(digest):
        raise NotFoundError(
            f"blob {digest} is not on this node; set storage.keep_blobs = true if it is false, "
            "then pull the image again"
        )
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
