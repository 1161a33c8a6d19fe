"""Image archives: OCI layouts and `docker save`, compressed or not, whole, broken and hostile."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criagent.base.errors import (
    CorruptError,
    ExhaustedError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedError,
)
from criagent.image.archive import members as members_module
from criagent.image.archive.images import ArchivedImage, archived_images
from criagent.image.archive.read import Contents, read_archive
from criagent.image.archive.room import Room
from criagent.image.archive.write import write_archive
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import digest_of, parse_digest
from criagent.image.documents.platforms import host_platform
from tests.support import image_builder

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
    "deep index": (lambda: {**layout(), "index.json": b'{"x":' * 100_000}, CorruptError),
    "no text": (lambda: {**layout(), "index.json": b"\xff\xfe"}, CorruptError),
    "huge index": (lambda: {**layout(), "index.json": b" " * (9 << 20)}, CorruptError),
    "path as digest": (
        lambda: layout({"digest": "sha256:../../../etc/passwd", "size": 1}),
        CorruptError,
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


def entry_of(content: bytes, **fields: Any) -> Json:
    return {"digest": digest(content), "size": len(content), **fields}


def put(members: Members, document: Json) -> Json:
    """Add a document to a layout; its entry."""
    content = json.dumps(document).encode()
    members[blob_name(digest(content))] = content
    return entry_of(content)


def artifact(members: Members) -> Json:
    """A signature, as cosign and ORAS copy it along."""
    config = {**put(members, {}), "mediaType": "application/vnd.oci.empty.v1+json"}
    kind = "application/vnd.dev.cosign.artifact.sig.v1+json"
    return put(members, {"artifactType": kind, "config": config, "layers": []})


def signature(members: Members) -> Json:
    """The same before OCI 1.1: an image in all but its layers."""
    kind = "application/vnd.dev.cosign.simplesigning.v1+json"
    layer = {**put(members, {"critical": {}}), "mediaType": kind}
    config = put(members, {"rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}})
    return put(members, {"config": config, "layers": [layer]})


def without_layer(members: Members) -> Json:
    diff = {"rootfs": {"diff_ids": [digest(b"missing")]}}
    return put(members, {"config": put(members, diff), "layers": [entry_of(b"missing")]})


def of_other_platform(members: Members) -> Json:
    config = put(members, {"os": "linux", "architecture": "s390x"})
    return put(members, {"config": config, "layers": []})


def wrong_content(members: Members) -> Json:
    members[blob_name(digest(b"right"))] = b"wrong"
    diff = {"rootfs": {"diff_ids": [digest(b"right")]}}
    return put(members, {"config": put(members, diff), "layers": [entry_of(b"right")]})


def one_too_few(members: Members) -> Json:
    return put(members, {"config": put(members, {"rootfs": {"diff_ids": [digest(b"")]}})})


BAD_ENTRIES: dict[str, tuple[Callable[[Members], Any], str]] = {
    "artifact": (artifact, "OCI artifact .*cosign.artifact"),
    "signature": (signature, "OCI artifact .*simplesigning"),
    "manifest is missing": (lambda _: entry_of(b"missing"), "the archive lacks 'blobs/sha256/"),
    "layer is missing": (without_layer, "the archive lacks 'blobs/sha256/"),
    "layer does not match its digest": (wrong_content, "does not match its digest"),
    "layers do not match": (one_too_few, "0 layers but 1 diff IDs"),
    "configuration is missing": (lambda m: put(m, {"config": entry_of(b"missing")}), "lacks"),
    "other platform, stated": (
        lambda _: entry_of(b"", platform={"os": "linux", "architecture": "s390x"}),
        "the image is for linux/s390x, this node is linux/",
    ),
    "other platform by its configuration": (of_other_platform, "the image is for linux/s390x"),
    "wrong type": (lambda _: {"digest": 5}, "malformed descriptor: digest: expected a string"),
    "no object": (lambda _: "x", "malformed descriptor: expected an object"),
    "digest leads elsewhere": (lambda _: entry_of(b"") | {"digest": "sha256:../../x"}, "digest"),
    "no JSON": (lambda m: m.update({blob_name(digest(b"{")): b"{"}) or entry_of(b"{"), "JSON"),
    "schema 1": (lambda m: put(m, {"fsLayers": []}), "push it again"),
    "bad name": (
        lambda _: named(IMAGE, "UPPER/CASE:1"),
        "invalid image reference 'UPPER/CASE:1'",
    ),
    "index without ours": (
        lambda m: put(m, {"manifests": [entry_of(b"", platform={"architecture": "s390x"})]}),
        "the index offers s390x",
    ),
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_one_bad_entry_costs_itself_only(
    files: BlobFiles, tmp_path: Path, name: str, *, first: bool
) -> None:
    make, why = BAD_ENTRIES[name]
    members = layout()
    bad, good = make(members), named(IMAGE, f"{REPOSITORY}:1")
    entries = [bad, good] if first else [good, bad]
    members["index.json"] = json.dumps({"manifests": entries}).encode()
    result = contents(files, tmp_path, members)
    assert result.images == {digest(IMAGE.manifest): [f"{REPOSITORY}:1"]}
    assert re.search(why, result.skipped[-1].why), result.skipped
    assert list(files.parts()) == []


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_when_nothing_can_be_imported_the_error_says_why(
    files: BlobFiles, tmp_path: Path, name: str
) -> None:
    make, why = BAD_ENTRIES[name]
    members = layout()
    bad = make(members)
    members["index.json"] = json.dumps({"manifests": [bad]}).encode()
    kinds = (CorruptError, InvalidRequestError, NotFoundError, UnsupportedError)
    with pytest.raises(kinds, match=why if "platform" not in name else "s390x"):
        contents(files, tmp_path, members)
    members["index.json"] = json.dumps({"manifests": [bad, entry_of(b"missing")]}).encode()
    with pytest.raises(kinds, match="1 more entries" if "other platform" not in name else "lacks"):
        contents(files, tmp_path, members)


def test_attestations_beside_an_image_are_no_news(files: BlobFiles, tmp_path: Path) -> None:
    """BuildKit writes them into every archive; their blobs may be left out."""
    unknown = {"os": "unknown", "architecture": "unknown"}
    marked = {"vnd.docker.reference.type": "attestation-manifest"}
    members = layout(
        entry_of(b"1", platform=unknown),
        entry_of(b"2", annotations=marked),
        named(IMAGE, f"{REPOSITORY}:1"),
    )
    assert contents(files, tmp_path, members).skipped == []


def test_bad_entries_of_docker_archives(files: BlobFiles, tmp_path: Path) -> None:
    members = docker()
    good = json.loads(members["manifest.json"])[0]  # type: ignore[arg-type]
    members["other.json"] = json.dumps({"os": "linux", "architecture": "s390x"}).encode()
    bad = [
        {**good, "Config": "missing.json"},
        {**good, "Layers": ["0/layer.tar", "missing.tar"]},
        {**good, "Layers": ["0/layer.tar"]},
        {**good, "Layers": "0/layer.tar"},
        {**good, "Config": "other.json"},
        {**good, "RepoTags": ["A B"]},
        {**good, "Layers": ["0/layer.tar"] * 501},
        None,
        [],
        5,
    ]
    entries = [*bad[:5], good, *bad[5:]]
    members["manifest.json"] = json.dumps(entries).encode()
    result = contents(files, tmp_path, members)
    assert list(result.images.values()) == [[f"{REPOSITORY}:1"]]
    assert {one.entry for one in result.skipped} >= {
        f"entry {number} of manifest.json" for number in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10)
    }
    members["manifest.json"] = json.dumps(bad[4:5]).encode()
    with pytest.raises(NotFoundError, match=r"no image for .*; it has linux/s390x"):
        contents(files, tmp_path, members)


def test_one_bad_tag_costs_itself_only(files: BlobFiles, tmp_path: Path) -> None:
    result = contents(files, tmp_path, docker(RepoTags=["A B", "good:1", "x" * 300, "good:2"]))
    tags = ["docker.io/library/good:1", "docker.io/library/good:2"]
    assert list(result.images.values()) == [tags]
    assert [one.entry[:12] for one in result.skipped] == ["name 'A B'", "name 'xxxxxx"]


def test_what_was_passed_over_is_named_up_to_a_limit(files: BlobFiles, tmp_path: Path) -> None:
    bad = [
        entry_of(
            str(n).encode(), annotations={"org.opencontainers.image.ref.name": "\x1b[31m" * 99}
        )
        for n in range(900)
    ]
    result = contents(files, tmp_path, layout(*bad, named(IMAGE, f"{REPOSITORY}:1")))
    assert len(result.skipped) == 100
    assert max(len(one.entry) + len(one.why) for one in result.skipped) <= 700
    assert all(one.entry.isprintable() and one.why.isprintable() for one in result.skipped)


def test_case_of_keys_does_not_matter(files: BlobFiles, tmp_path: Path) -> None:
    """As in Go: `manifest.json` in lower case, `index.json` with another one."""
    members = docker()
    text = members["manifest.json"]
    assert isinstance(text, bytes)
    for key in (b"Config", b"RepoTags", b"Layers"):
        text = text.replace(key, key.lower())
    members["manifest.json"] = text
    assert list(contents(files, tmp_path, members).images.values()) == [[f"{REPOSITORY}:1"]]
    members = layout()
    index = members["index.json"]
    assert isinstance(index, bytes)
    members["index.json"] = index.replace(b'"manifests"', b'"Manifests"')
    assert list(contents(files, tmp_path, members).images.values()) == [[f"{REPOSITORY}:1"]]


NAMES: dict[str, tuple[Json | None, list[str]]] = {
    "none": (None, []),
    "empty": ({}, []),
    "containerd's": ({"io.containerd.image.name": "quay.io/a/b:1"}, ["quay.io/a/b:1"]),
    "short": ({"io.containerd.image.name": "busybox"}, ["docker.io/library/busybox:latest"]),
    "both": (
        {
            "io.containerd.image.name": "quay.io/a/b:1",
            "org.opencontainers.image.ref.name": "x.io/other:1",
        },
        ["quay.io/a/b:1"],
    ),
    "reference": ({"org.opencontainers.image.ref.name": "quay.io/a/b:1"}, ["quay.io/a/b:1"]),
    "a tag alone": ({"org.opencontainers.image.ref.name": "latest"}, []),
    "by digest": (
        {"io.containerd.image.name": f"quay.io/a@sha256:{'0' * 64}"},
        [f"quay.io/a@sha256:{'0' * 64}"],
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_layouts(files: BlobFiles, tmp_path: Path, name: str) -> None:
    annotations, names = NAMES[name]
    members = layout({**IMAGE.descriptor, "annotations": annotations})
    assert list(contents(files, tmp_path, members).images.values()) == [names]


def test_docker_names_that_say_nothing(files: BlobFiles, tmp_path: Path) -> None:
    for tags in (None, []):
        assert list(contents(files, tmp_path, docker(RepoTags=tags)).images.values()) == [[]]
    members = docker()
    listed = json.loads(members["manifest.json"])  # type: ignore[arg-type]
    del listed[0]["RepoTags"]
    listed[0]["LayerSources"] = {}
    members["manifest.json"] = json.dumps(listed).encode()
    assert list(contents(files, tmp_path, members).images.values()) == [[]]


def test_members_may_come_in_any_order_and_spelling(files: BlobFiles, tmp_path: Path) -> None:
    turned = dict(reversed(layout().items()))
    assert list(turned)[-1] == "oci-layout"
    for prefix in ("", "./", "/", ".//"):
        spelt = {prefix + name: content for name, content in turned.items()}
        assert len(contents(files, tmp_path, spelt).images) == 1


def test_links_to_links_end(files: BlobFiles, tmp_path: Path) -> None:
    """podman links `<id>/layer.tar` to `../<digest>.tar`, which may be a link too."""
    members = docker(Layers=["a/layer.tar", "1/layer.tar"])
    members["a/layer.tar"] = link("a/layer.tar", "../b.tar")
    members["b.tar"] = link("b.tar", "c.tar", tarfile.LNKTYPE)
    members["c.tar"] = link("c.tar", "./0/layer.tar")
    assert len(contents(files, tmp_path, members).images) == 1
    members["c.tar"] = link("c.tar", "a/layer.tar")
    with pytest.raises(CorruptError, match="endless chain of links"):
        contents(files, tmp_path, members)


def test_a_layer_named_many_times_is_read_once(files: BlobFiles, tmp_path: Path) -> None:
    """Hashed each time it would be 8 GB, beyond the time limit of this test."""
    layer = bytes(16 << 20)
    members = docker(Layers=["0/layer.tar"] * 500)
    members["0/layer.tar"] = layer
    members["config.json"] = json.dumps({"rootfs": {"diff_ids": [digest(layer)] * 500}}).encode()
    (found,) = taken(files, tmp_path, members)
    assert len(found.image.layers) == 500
    assert sum(1 for _ in files.all()) == 3


def test_too_many_layers_are_refused_before_any_is_read(files: BlobFiles, tmp_path: Path) -> None:
    members = docker(Layers=["0/layer.tar"] * 3000)
    with pytest.raises(CorruptError, match="more than 500 layers"):
        contents(files, tmp_path, members)
    assert list(files.all()) == []


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("pack", ["plain", "gzip"])
def test_extended_headers_are_limited(
    files: BlobFiles, tmp_path: Path, kind: bytes, pack: str
) -> None:
    """The reader does not hold a header of gigabytes, which compress to megabytes."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 2 << 30
    data = header.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20)
    with pytest.raises(InvalidRequestError, match="extended header is larger"):
        contents(files, tmp_path, PACK[pack](data))


def test_names_of_members_are_limited(
    files: BlobFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert members_module._MAX_NAMES == 32 << 20
    monkeypatch.setattr(members_module, "_MAX_NAMES", 32 << 14)
    members = {"x/" + "n" * 2000: b"", **layout()}
    assert len(contents(files, tmp_path, members).images) == 1  # passed over
    block = tarfile.TarInfo("n" * 900).tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(InvalidRequestError, match=f"{32 << 14} bytes of names"):
        contents(files, tmp_path, block * 625 + bytes(1024))


def test_an_archive_of_an_old_docker_says_what_to_do(files: BlobFiles, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="save it again"):
        contents(files, tmp_path, {"repositories": b"{}", "1/layer.tar": b""})


def test_layers_of_docker_archives_have_the_type_of_their_content(
    files: BlobFiles, tmp_path: Path
) -> None:
    members = docker()
    members["0/layer.tar"] = gzip.compress(LAYERS[0])
    members["1/layer.tar"] = zstd.compress(LAYERS[1])
    (found,) = taken(files, tmp_path, members)
    kinds = [layer.media_type.rpartition(".")[2] for layer in found.image.layers]
    assert kinds == ["tar+gzip", "tar+zstd"]


def test_blobs_that_the_node_has_need_not_be_in_the_archive(
    files: BlobFiles, tmp_path: Path
) -> None:
    contents(files, tmp_path, layout())
    members = without(layout(), blob_name(digest(LAYER)))
    assert len(contents(files, tmp_path, members).images) == 1


def test_the_disk_keeps_a_reserve(tmp_path: Path) -> None:
    room = Room(tmp_path)
    room.take(1)
    facts = os.statvfs(tmp_path)
    with pytest.raises(ExhaustedError, match=r"MiB stay reserved for the node; remove images"):
        room.take(facts.f_bavail * facts.f_frsize)


def test_members_that_lead_upwards_touch_nothing(files: BlobFiles, tmp_path: Path) -> None:
    members = {**layout(), "../escaped": b"x", "/tmp/../escaped": b"x", "blobs/../../escaped": b"x"}
    taken(files, tmp_path, members)
    assert not list(tmp_path.parent.rglob("escaped"))


def test_the_number_of_members_is_limited(
    files: BlobFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert members_module._MAX_MEMBERS == 100_000
    monkeypatch.setattr(members_module, "_MAX_MEMBERS", 1000)
    member = tarfile.TarInfo("x").tobuf()
    with pytest.raises(InvalidRequestError, match="more than 1000 members"):
        taken(files, tmp_path, member * 1001 + bytes(1024))


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
    (second,) = archived_images(read_archive(out, other).images, other)
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
