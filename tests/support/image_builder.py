# SPDX-License-Identifier: Apache-2.0
"""Images made by hand from files of this system, and their way into a registry."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from email.message import Message
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urljoin
from urllib.request import Request, urlopen

from backports import zstd

Json = dict[str, Any]

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_BLOB = "application/octet-stream"
_WHEN = "2026-01-01T00:00:00Z"
PATH_VARIABLE = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def digest(content: bytes) -> str:
    """sha256 with its algorithm."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def libraries(program: Path) -> list[Path]:
    """Shared libraries of a program, its loader included."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return [Path(path) for path in sorted(set(re.findall(r"(/\S+)", done.stdout)))]


class Layer:
    """A layer's tar. Parent directories are added unless `implicit` leaves them out."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(  # noqa: SIM115 - closed by `tar`
            fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT
        )
        self._seen: set[str] = set()

    def directory(self, path: str, mode: int = 0o755, *, uid: int = 0) -> None:
        """A directory and those above it."""
        if path in self._seen or path in {"", "."}:
            return
        self._above(path)
        self._seen.add(path)
        entry = tarfile.TarInfo(path + "/")
        entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, uid, uid
        self._tar.addfile(entry)

    def file(
        self,
        path: str,
        content: bytes,
        mode: int = 0o755,
        *,
        xattrs: dict[str, str] | None = None,
        implicit: bool = False,
    ) -> None:
        """A regular file."""
        if not implicit:
            self._above(path)
        entry = tarfile.TarInfo(path)
        entry.mode, entry.size = mode, len(content)
        entry.pax_headers = {f"SCHILY.xattr.{k}": v for k, v in (xattrs or {}).items()}
        self._tar.addfile(entry, io.BytesIO(content))

    def entry(self, entry: tarfile.TarInfo, content: bytes = b"") -> None:
        """Any member as it is."""
        self._tar.addfile(entry, io.BytesIO(content) if content else None)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._above(path)
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(entry)

    def hard_link(self, path: str, target: str) -> None:
        """A hard link to a path of this layer or a lower one."""
        entry = tarfile.TarInfo(path)
        entry.type, entry.linkname = tarfile.LNKTYPE, target
        self._tar.addfile(entry)

    def program(self, source: Path, path: str) -> None:
        """A program with its libraries at their own places."""
        self.file(path, source.read_bytes())
        for library in libraries(source):
            name = str(library).lstrip("/")
            if name not in self._seen:
                self._seen.add(name)
                self.file(name, library.read_bytes())

    def tar(self) -> bytes:
        """The finished archive."""
        self._tar.close()
        return self._buffer.getvalue()

    def _above(self, path: str) -> None:
        self.directory(str(PurePosixPath(path).parent))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Blobs of one image by digest, and the manifest that holds them together."""

    blobs: dict[str, bytes]
    manifest: bytes

    @property
    def descriptor(self) -> Json:
        """How an index names the manifest."""
        return {
            "mediaType": _MANIFEST,
            "digest": digest(self.manifest),
            "size": len(self.manifest),
        }


def image(
    layers: list[bytes], config: Json, *, arch: str = "amd64", compression: str = "gzip"
) -> Image:
    """An image of tar layers; "mixed" compresses them with gzip and zstd in turn."""
    packed = []
    for number, layer in enumerate(layers):
        use_zstd = compression == "mixed" and number % 2 == 1
        blob = zstd.compress(layer) if use_zstd else gzip.compress(layer, 6, mtime=0)
        packed.append((blob, _LAYER + ("+zstd" if use_zstd else "+gzip"), layer))
    return packed_image(packed, config, arch=arch)


def packed_image(
    layers: list[tuple[bytes, str, bytes]], config: Json, *, arch: str = "amd64", **notes: str
) -> Image:
    """An image of layers as they are: blob, media type and the tar in it, annotated by `notes`."""
    blobs: dict[str, bytes] = {}
    descriptors = []
    for blob, kind, _ in layers:
        blobs[digest(blob)] = blob
        about = {"mediaType": kind, "digest": digest(blob), "size": len(blob)}
        descriptors.append({**about, **({"annotations": notes} if notes else {})})
    document = {
        "architecture": arch,
        "os": "linux",
        "created": _WHEN,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for _, _, tar in layers]},
        "history": [{"created": _WHEN} for _ in layers],
    }
    content = json.dumps(document).encode()
    blobs[digest(content)] = content
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": digest(content), "size": len(content)},
        "layers": descriptors,
    }
    return Image(blobs=blobs, manifest=json.dumps(manifest).encode())


def push(registry: str, images: list[tuple[Image, str]], *names: str) -> None:
    """Upload an image, or an index of several by architecture, under each `repository:tag`.

    The registry (host:port) speaks plain HTTP (OCI distribution specification, "Pushing").
    """
    entries = []
    for one, arch in images:
        entries.append({**one.descriptor, "platform": {"architecture": arch, "os": "linux"}})
    index = json.dumps({"schemaVersion": 2, "mediaType": _INDEX, "manifests": entries}).encode()
    for name in names:
        repository, _, tag = name.rpartition(":")
        base = f"http://{registry}/v2/{repository}"
        for one, _ in images:
            for content in one.blobs.values():
                put_blob(base, content)
            put_manifest(base, tag if len(images) == 1 else digest(one.manifest), one.manifest)
        if len(images) > 1:
            _request("PUT", f"{base}/manifests/{tag}", index, _INDEX)


def put_blob(base: str, content: bytes) -> None:
    """Upload a blob to the repository with the URL `base`."""
    upload = _request("POST", f"{base}/blobs/uploads/")["Location"]
    place = urljoin(base, upload)
    joint = "&" if "?" in place else "?"
    _request("PUT", f"{place}{joint}digest={digest(content)}", content)


def put_manifest(base: str, reference: str, content: bytes) -> None:
    """Upload a manifest under a tag or its digest."""
    _request("PUT", f"{base}/manifests/{reference}", content, _MANIFEST)


def _request(method: str, url: str, content: bytes = b"", kind: str = _BLOB) -> Message:
    request = Request(url, data=content, method=method, headers={"Content-Type": kind})
    with urlopen(request) as response:
        return response.headers
