# SPDX-License-Identifier: Apache-2.0
"""Layers made for other ways to pull: eStargz and zstd:chunked are pulled as a whole, encrypted
ones are refused.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from backports import zstd

from tests.support.artifacts import ArtifactRegistry, artifact_registry
from tests.support.cri_client import Cri, api
from tests.support.image_builder import Image, Layer, digest, packed_image, push
from tests.support.made_images import of
from tests.support.pods import Pods

pytestmark = pytest.mark.root

LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArtifactRegistry]:
    with artifact_registry(tmp_path_factory.mktemp("registry")) as one:
        yield one


def members() -> list[bytes]:
    """The parts of a tar archive: one for each member, with its padding; the end is the last."""
    layer = Layer()
    layer.file("bin/busybox", Path("/usr/bin/busybox").read_bytes())
    for applet in ("sleep", "cat", "sh"):
        layer.symlink(f"bin/{applet}", "busybox")
    layer.file("etc/text", b"of a layer in parts\n")
    content = layer.tar()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        places = [member.offset for member in archive]
        places.append(archive.offset)
    return [content[a:b] for a, b in zip([0, *places[1:]], [*places[1:], None], strict=True)]


def toc() -> bytes:
    entries = [{"name": "etc/text", "type": "reg", "size": 20, "offset": 0}]
    return json.dumps({"version": 1, "entries": entries}).encode()


def estargz() -> tuple[bytes, bytes]:
    """A layer of eStargz and its tar: a gzip member for each file, its index and a footer.

    (containerd/stargz-snapshotter, docs/estargz.md)
    """
    *files, end = members()
    index = io.BytesIO()
    with tarfile.open(fileobj=index, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("stargz.index.json")
        entry.size = len(toc())
        archive.addfile(entry, io.BytesIO(toc()))
        length = archive.offset
    named = index.getvalue()[:length]
    parts = [gzip.compress(part, mtime=0) for part in files]
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % sum(map(len, parts))
    footer = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra
    footer += b"\x01\0\0\xff\xff" + bytes(8)
    assert len(footer) == 51
    blob = b"".join(parts) + gzip.compress(named + end, mtime=0) + footer
    return blob, b"".join(files) + named + end


def zstd_chunked() -> tuple[bytes, bytes]:
    """A layer of zstd:chunked and its tar: a frame for each file, and what describes them in
    frames that decoders skip (containers/storage, pkg/chunked).
    """
    parts = members()
    blob = b"".join(zstd.compress(part) for part in parts)
    manifest = zstd.compress(toc())
    footer = struct.pack("<QQQQ", len(blob) + 8, len(manifest), len(toc()), 1) + b"GNUlInUx"
    for skipped in (manifest, footer):
        blob += b"\x50\x2a\x4d\x18" + struct.pack("<I", len(skipped)) + skipped
    return blob, b"".join(parts)


def pushed(registry: ArtifactRegistry, name: str, image: Image) -> str:
    push(registry.host, [(image, "amd64")], f"{name}:1")
    return f"{registry.host}/{name}:1"


@pytest.mark.parametrize("kind", ["estargz", "zstd-chunked"])
def test_layers_for_lazy_pulls_are_pulled_whole(
    cri: Cri, pods: Pods, registry: ArtifactRegistry, kind: str
) -> None:
    if kind == "estargz":
        (blob, tar), media = estargz(), f"{LAYER}+gzip"
        note = {"containerd.io/snapshot/stargz/toc.digest": digest(toc())}
    else:
        (blob, tar), media = zstd_chunked(), f"{LAYER}+zstd"
        note = {"io.github.containers.zstd-chunked.manifest-checksum": digest(toc())}
    name = pushed(registry, kind, packed_image([(blob, media, tar)], {}, **note))
    cri.pull(name)
    running = pods.running("/bin/sleep", "100000", change=of(name))
    assert cri.exec(running, "/bin/cat", "/etc/text").stdout == b"of a layer in parts\n"
    cri.remove(running)
    cri.remove_image(name)


def test_an_encrypted_layer_is_refused_by_name(cri: Cri, registry: ArtifactRegistry) -> None:
    blob = bytes(range(256))
    notes = {"org.opencontainers.image.enc.keys.jwe": "e30=", "org.opencontainers.image.enc": "{}"}
    image = packed_image([(blob, f"{LAYER}+gzip+encrypted", b"secret")], {}, **notes)
    name = pushed(registry, "encrypted", image)
    before = [one.id for one in cri.images()]
    with pytest.raises(grpc.RpcError) as caught:
        cri.pull(name)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    text = caught.value.details() or ""
    assert text.startswith(
        f"{name}: its layer {digest(blob)} is encrypted ({LAYER}+gzip+encrypted)"
    )
    assert "skopeo copy --decryption-key" in text
    assert [one.id for one in cri.images()] == before
    status = cri.image.ImageStatus(api.ImageStatusRequest(image=api.ImageSpec(image=name)))
    assert not status.HasField("image")
