# SPDX-License-Identifier: Apache-2.0
"""Archives of images as tar files, made by hand: layouts, docker archives, and how to take them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backports import zstd

from criagent.image.archive.contents import Contents
from criagent.image.archive.images import ArchivedImage, archived_images
from criagent.image.archive.read import read_archive
from criagent.image.blobs import BlobFiles
from tests.support import image_builder

Json = dict[str, Any]


Members = dict[str, bytes | tarfile.TarInfo]


LAYERS = [b"first layer " * 100, b"second layer " * 100]


IMAGE = image_builder.image(LAYERS, {"Cmd": ["sh"]})


CONFIG = next(c for c in IMAGE.blobs.values() if c.startswith(b"{"))


REPOSITORY = "registry.test/a"


def tar(members: Members) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


def blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def named(image: image_builder.Image, name: str, **fields: Any) -> Json:
    annotations = {"io.containerd.image.name": name}
    return {**image.descriptor, "annotations": annotations, **fields}


def layout(*entries: Json, images: tuple[image_builder.Image, ...] = (IMAGE,)) -> Members:
    members: Members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    for image in images:
        members[blob_name(image_builder.digest(image.manifest))] = image.manifest
        members.update({blob_name(digest): blob for digest, blob in image.blobs.items()})
    chosen = entries or (named(IMAGE, f"{REPOSITORY}:1"),)
    members["index.json"] = json.dumps({"schemaVersion": 2, "manifests": chosen}).encode()
    return members


def docker(**changes: Any) -> Members:
    listed = {
        "Config": "config.json",
        "RepoTags": [f"{REPOSITORY}:1"],
        "Layers": ["0/layer.tar", "1/layer.tar"],
        **changes,
    }
    return {
        "config.json": CONFIG,
        "0/layer.tar": LAYERS[0],
        "1/layer.tar": LAYERS[1],
        "manifest.json": json.dumps([listed]).encode(),
    }


def contents(files: BlobFiles, tmp_path: Path, data: bytes | Members) -> Contents:
    path = tmp_path / "archive"
    path.write_bytes(data if isinstance(data, bytes) else tar(data))
    return read_archive(path, files)


def taken(files: BlobFiles, tmp_path: Path, data: bytes | Members) -> list[ArchivedImage]:
    return archived_images(contents(files, tmp_path, data).images, files)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "two members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
}


def without(members: Members, start: str) -> Members:
    return {k: v for k, v in members.items() if not k.startswith(start)}


def replaced(content: bytes, by: bytes) -> Members:
    return {k: by if v == content else v for k, v in layout().items()}


LAYER = next(c for c in IMAGE.blobs.values() if c != CONFIG)


def digest(content: bytes) -> str:
    return image_builder.digest(content)


def entry_of(content: bytes, **fields: Any) -> Json:
    return {"digest": digest(content), "size": len(content), **fields}


def put(members: Members, document: Json) -> Json:
    """Add a document to a layout; its entry."""
    content = json.dumps(document).encode()
    members[blob_name(digest(content))] = content
    return entry_of(content)
