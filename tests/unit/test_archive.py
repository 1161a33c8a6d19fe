# SPDX-License-Identifier: Apache-2.0
"""Image archives: OCI layouts and `docker save`, compressed or not, whole, broken and hostile."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from criagent.base.errors import (
    NotFoundError,
)
from criagent.image.archive.images import archived_images
from criagent.image.archive.read import read_archive
from criagent.image.archive.write import write_archive
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import digest_of, parse_digest
from criagent.image.documents.platforms import host_platform
from tests.support import image_builder
from tests.support.archive_cases import (
    CONFIG,
    IMAGE,
    LAYER,
    LAYERS,
    PACK,
    REPOSITORY,
    Json,
    Members,
    blob_name,
    contents,
    docker,
    layout,
    link,
    named,
    taken,
    tar,
)


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    made = BlobFiles(tmp_path / "blobs")
    made.prepare()
    return made


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
    nothing: tuple[list[str] | None, ...] = (None, [])
    for tags in nothing:
        assert list(contents(files, tmp_path, docker(RepoTags=tags)).images.values()) == [[]]
    members = docker()
    listed = json.loads(members["manifest.json"])  # type: ignore[arg-type]
    del listed[0]["RepoTags"]
    listed[0]["LayerSources"] = {}
    members["manifest.json"] = json.dumps(listed).encode()
    assert list(contents(files, tmp_path, members).images.values()) == [[]]


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
