"""Image archives: OCI layouts and `docker save`, compressed or not, whole, broken and hostile."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_builder
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criagent.errors import CorruptError, InvalidRequestError, NotFoundError, UnsupportedError
from criagent.image.archive import ArchivedImage, read_archive, write_archive
from criagent.image.blobs import BlobFiles
from criagent.image.digest import digest_of, parse_digest
from criagent.image.manifest import host_platform

Json = dict[str, Any]
Members = dict[str, bytes | tarfile.TarInfo]

LAYERS = [b"first layer " * 100, b"second layer " * 100]
IMAGE = image_builder.image(LAYERS, {"Cmd": ["sh"]})
CONFIG = next(c for c in IMAGE.blobs.values() if c.startswith(b"{"))
REPOSITORY = "registry.test/a"


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    made = BlobFiles(tmp_path / "blobs")
    made.prepare()
    return made


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


def taken(files: BlobFiles, tmp_path: Path, data: bytes | Members) -> list[ArchivedImage]:
    path = tmp_path / "archive"
    path.write_bytes(data if isinstance(data, bytes) else tar(data))
    return read_archive(path, files)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "two members": lambda data: gzip.compress(data[:1000]) + gzip.compress(data[1000:]),
}


@pytest.mark.parametrize("pack", PACK)
def test_oci_layouts(files: BlobFiles, tmp_path: Path, pack: str) -> None:
    (found,) = taken(files, tmp_path, PACK[pack](tar(layout())))
    image = found.image
    assert image.id == image_builder.digest(CONFIG)
    assert image.manifest_digest == image_builder.digest(IMAGE.manifest)
    assert image.repo_tags == (f"{REPOSITORY}:1",)
    assert image.repo_digests == (f"{REPOSITORY}@{image.manifest_digest}",)
    assert image.config.cmd == ("sh",)
    assert [x.diff_id for x in image.layers] == [image_builder.digest(x) for x in LAYERS]
    assert image.size == sum(len(blob) for blob in IMAGE.blobs.values())
    assert {blob.digest for blob in found.blobs} == {str(digest) for digest, _ in files.all()}
    assert list(files.parts()) == []
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["archive"]


@pytest.mark.parametrize("pack", PACK)
def test_docker_archives(files: BlobFiles, tmp_path: Path, pack: str) -> None:
    (found,) = taken(files, tmp_path, PACK[pack](tar(docker())))
    image = found.image
    assert image.id == image_builder.digest(CONFIG)
    assert image.repo_tags == (f"{REPOSITORY}:1",)
    assert [x.digest for x in image.layers] == [image_builder.digest(x) for x in LAYERS]
    for blob in found.blobs:
        assert files.has(parse_digest(blob.digest))


def test_docker_archives_with_compressed_and_linked_layers(
    files: BlobFiles, tmp_path: Path
) -> None:
    config = json.dumps({"rootfs": {"diff_ids": [image_builder.digest(LAYERS[0])] * 3}}).encode()
    packed = gzip.compress(LAYERS[0])
    members = docker(Layers=["0/layer.tar", "1/layer.tar", "./2/layer.tar"], RepoTags=None)
    members["config.json"] = config
    members["0/layer.tar"] = packed
    members["1/layer.tar"] = link("1/layer.tar", "../0/layer.tar")
    members["./2/layer.tar"] = link("2/layer.tar", "0/layer.tar", tarfile.LNKTYPE)
    listed = members["manifest.json"]
    assert isinstance(listed, bytes)
    members["manifest.json"] = listed.replace(b"./2", b"2")
    (found,) = taken(files, tmp_path, members)
    assert [x.digest for x in found.image.layers] == [image_builder.digest(packed)] * 3
    assert found.image.repo_tags == ()
    assert len({x.chain_id for x in found.image.layers}) == 3


def test_short_names_are_written_in_full(files: BlobFiles, tmp_path: Path) -> None:
    (found,) = taken(files, tmp_path, docker(RepoTags=["busybox:1", "a/b"]))
    assert found.image.repo_tags == ("docker.io/library/busybox:1", "docker.io/a/b:latest")


def test_the_index_may_nest_platforms(files: BlobFiles, tmp_path: Path) -> None:
    here, other = host_platform(), {"os": "linux", "architecture": "s390x"}
    platform = {"os": here.os, "architecture": here.architecture}
    inner = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                {"digest": "sha256:" + "0" * 64, "size": 1, "platform": other},
                {**IMAGE.descriptor, "platform": platform},
            ],
        }
    ).encode()
    digest = image_builder.digest(inner)
    entry = {"digest": digest, "size": len(inner), "annotations": {}}
    members = layout(entry)
    members[blob_name(digest)] = inner
    (found,) = taken(files, tmp_path, members)
    assert found.image.manifest_digest == image_builder.digest(IMAGE.manifest)
    assert found.image.repo_tags == ()


def test_platforms_side_by_side(files: BlobFiles, tmp_path: Path) -> None:
    """Other platforms are passed over, even when their blobs are not there."""
    foreign = image_builder.image([b"foreign"], {}, arch="s390x")
    name = f"{REPOSITORY}:1"
    other = named(foreign, name, platform={"os": "linux", "architecture": "s390x"})
    unknown = named(foreign, name, platform={"os": "unknown", "architecture": "unknown"})
    (found,) = taken(files, tmp_path, layout(other, unknown, named(IMAGE, name)))
    assert found.image.id == image_builder.digest(CONFIG)
    assert found.image.repo_tags == (name,)
    with pytest.raises(NotFoundError, match="no image for"):
        taken(files, tmp_path, layout(other))


def test_one_image_under_two_names_is_one(files: BlobFiles, tmp_path: Path) -> None:
    entries = [named(IMAGE, f"{REPOSITORY}:{tag}") for tag in ("1", "2")]
    (found,) = taken(files, tmp_path, layout(*entries))
    assert found.image.repo_tags == (f"{REPOSITORY}:1", f"{REPOSITORY}:2")
    assert len(found.image.repo_digests) == 1


def test_sha512_blobs_keep_their_digests(files: BlobFiles, tmp_path: Path) -> None:
    members: Members = {"oci-layout": b"{}"}

    def put(content: bytes) -> Json:
        digest = hashlib.sha512(content).hexdigest()
        members[f"blobs/sha512/{digest}"] = content
        return {"digest": f"sha512:{digest}", "size": len(content)}

    manifest = {"schemaVersion": 2, "config": put(CONFIG), "layers": [put(x) for x in LAYERS]}
    entry = put(json.dumps(manifest).encode())
    members["index.json"] = json.dumps({"manifests": [entry]}).encode()
    (found,) = taken(files, tmp_path, members)
    for blob in found.blobs:
        assert files.has(parse_digest(blob.digest)), blob.digest
    write_archive([(found.image, None)], files, tmp_path / "out")


def without(members: Members, start: str) -> Members:
    return {k: v for k, v in members.items() if not k.startswith(start)}


def replaced(content: bytes, by: bytes) -> Members:
    return {k: by if v == content else v for k, v in layout().items()}


LAYER = next(c for c in IMAGE.blobs.values() if c != CONFIG)
BAD: dict[str, tuple[Callable[[], bytes | Members], type[Exception]]] = {
    "empty": (lambda: b"", InvalidRequestError),
    "text": (lambda: b"text" * 1000, InvalidRequestError),
    "gzip of text": (lambda: gzip.compress(b"text" * 1000), InvalidRequestError),
    "cut gzip": (lambda: gzip.compress(tar(layout()))[:-20], InvalidRequestError),
    "cut tar": (lambda: tar(layout())[:-12_000], InvalidRequestError),
    "no image": (lambda: {"hello": b"x"}, InvalidRequestError),
    "no oci-layout": (lambda: without(layout(), "oci-layout"), InvalidRequestError),
    "no manifest": (lambda: without(layout(), blob_name(digest(IMAGE.manifest))), CorruptError),
    "no config": (lambda: without(layout(), blob_name(digest(CONFIG))), CorruptError),
    "no layer": (lambda: without(layout(), blob_name(digest(LAYER))), CorruptError),
    "wrong manifest": (lambda: replaced(IMAGE.manifest, b"{}"), CorruptError),
    "wrong config": (lambda: replaced(CONFIG, b"{}"), CorruptError),
    "wrong layer": (lambda: replaced(LAYER, b"X" * len(LAYER)), CorruptError),
    "short layer": (lambda: replaced(LAYER, LAYER[:-1]), CorruptError),
    "bad index": (lambda: {**layout(), "index.json": b"[]"}, CorruptError),
    "nested index": (lambda: {**layout(), "index.json": b"[" * 100_000}, CorruptError),
    "deep index": (lambda: {**layout(), "index.json": b'{"x":' * 100_000}, InvalidRequestError),
    "no text": (lambda: {**layout(), "index.json": b"\xff\xfe"}, CorruptError),
    "huge index": (lambda: {**layout(), "index.json": b" " * (9 << 20)}, CorruptError),
    "path as digest": (
        lambda: layout({"digest": "sha256:../../../etc/passwd", "size": 1}),
        InvalidRequestError,
    ),
    "bad name": (lambda: layout(named(IMAGE, "UPPER/CASE:1")), InvalidRequestError),
    "no platform": (lambda: layout({**IMAGE.descriptor, "platform": 5}), CorruptError),
    "docker bad list": (lambda: {"manifest.json": b"{}"}, CorruptError),
    "docker no config": (lambda: without(docker(), "config.json"), CorruptError),
    "docker no layer": (lambda: without(docker(), "0/"), CorruptError),
    "docker outside": (lambda: docker(Config="/etc/passwd"), CorruptError),
    "docker upwards": (lambda: docker(Config="../../etc/passwd"), CorruptError),
    "docker too few": (lambda: docker(Layers=["0/layer.tar"]), CorruptError),
    "docker bad tag": (lambda: docker(RepoTags=["a b"]), InvalidRequestError),
    "docker config is no config": (lambda: docker(Config="0/layer.tar"), CorruptError),
    "link upwards": (
        lambda: {**docker(), "config.json": link("config.json", "../../../../etc/passwd")},
        CorruptError,
    ),
    "link to root": (
        lambda: {**docker(), "config.json": link("config.json", "/etc/passwd")},
        CorruptError,
    ),
    "link to itself": (
        lambda: {**docker(), "config.json": link("config.json", "config.json")},
        CorruptError,
    ),
    "schema 1": (
        lambda: {
            **layout({"digest": digest(b'{"schemaVersion":1}'), "size": 19}),
            blob_name(digest(b'{"schemaVersion":1}')): b'{"schemaVersion":1}',
        },
        UnsupportedError,
    ),
}


def digest(content: bytes) -> str:
    return image_builder.digest(content)


@pytest.mark.parametrize("name", BAD)
def test_bad_archives(files: BlobFiles, tmp_path: Path, name: str) -> None:
    make, error = BAD[name]
    with pytest.raises(error):
        taken(files, tmp_path, make())
    assert list(files.parts()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"archive", "blobs"}
    for found, _ in files.all():  # whatever was taken is right
        files.read(found, 1 << 30)


def test_members_that_lead_upwards_touch_nothing(files: BlobFiles, tmp_path: Path) -> None:
    members = {**layout(), "../escaped": b"x", "/tmp/../escaped": b"x", "blobs/../../escaped": b"x"}
    taken(files, tmp_path, members)
    assert not list(tmp_path.parent.rglob("escaped"))


def test_the_number_of_members_is_limited(files: BlobFiles, tmp_path: Path) -> None:
    member = tarfile.TarInfo("x").tobuf()
    with pytest.raises(InvalidRequestError, match="100000 members"):
        taken(files, tmp_path, member * 100_001 + bytes(1024))


SMALL = tar(docker())[: 512 * 12]


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=80,
)
@given(
    st.lists(
        st.tuples(st.integers(0, len(SMALL) - 13), st.binary(min_size=1, max_size=12)), min_size=1
    ),
)
def test_mutated_archives_are_taken_or_refused(
    files: BlobFiles, tmp_path: Path, changes: list[tuple[int, bytes]]
) -> None:
    data = bytearray(SMALL)
    for at, noise in changes:
        data[at : at + len(noise)] = noise
    for at in range(0, len(data), 512):  # with right checksums, or nothing would be looked at
        block = data[at : at + 512]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    with contextlib.suppress(InvalidRequestError, CorruptError, NotFoundError, UnsupportedError):
        taken(files, tmp_path, bytes(data))
    assert list(files.parts()) == []


BACKWARDS = b"\xff" * 10 + b"\xfc\x00"


@pytest.mark.parametrize(
    "size", [BACKWARDS, b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\x80" + b"\x7f" * 11]
)
def test_impossible_sizes(files: BlobFiles, tmp_path: Path, size: bytes) -> None:
    block = bytearray(tarfile.TarInfo("x").tobuf())
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises((InvalidRequestError, CorruptError)):
        taken(files, tmp_path, bytes(block) + tar(layout()))


@pytest.mark.parametrize("source", [layout, docker])
def test_an_export_imports_as_the_same_image(
    files: BlobFiles, tmp_path: Path, source: Callable[[], Members]
) -> None:
    (first,) = taken(files, tmp_path, source())
    out = tmp_path / "out.tar"
    write_archive([(first.image, None)], files, out)
    other = BlobFiles(tmp_path / "other")
    other.prepare()
    (second,) = read_archive(out, other)
    assert second == first
    assert sorted(map(str, other.all())) == sorted(map(str, files.all()))
    again = tmp_path / "again.tar"
    write_archive([(second.image, None)], other, again)
    assert again.read_bytes() == out.read_bytes()


def test_an_export_is_a_docker_archive_too(files: BlobFiles, tmp_path: Path) -> None:
    (first,) = taken(files, tmp_path, layout())
    out = tmp_path / "out.tar"
    write_archive([(first.image, f"{REPOSITORY}:1")], files, out)
    with tarfile.open(out) as archive:
        members = {
            m.name: archive.extractfile(m).read()  # type: ignore[union-attr]
            for m in archive
        }
    del members["index.json"]
    other = BlobFiles(tmp_path / "other")
    other.prepare()
    (second,) = taken(other, tmp_path, dict(members))
    assert (second.image.id, second.image.repo_tags) == (first.image.id, first.image.repo_tags)
    assert second.image.layers[0].digest == first.image.layers[0].digest


def test_an_export_without_its_blobs_is_refused(files: BlobFiles, tmp_path: Path) -> None:
    (first,) = taken(files, tmp_path, layout())
    files.remove(digest_of(LAYER))
    with pytest.raises(NotFoundError, match="pull"):
        write_archive([(first.image, None)], files, tmp_path / "out.tar")
