# SPDX-License-Identifier: Apache-2.0
"""Broken and hostile image archives: what is refused whole, and what costs one entry only."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import (
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    UnsupportedError,
)
from criagent.image.blobs import BlobFiles
from tests.support.archive_cases import (
    CONFIG,
    IMAGE,
    LAYER,
    REPOSITORY,
    Json,
    Members,
    blob_name,
    contents,
    digest,
    docker,
    entry_of,
    layout,
    link,
    named,
    put,
    replaced,
    taken,
    tar,
    without,
)


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    made = BlobFiles(tmp_path / "blobs")
    made.prepare()
    return made


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


@pytest.mark.parametrize("name", BAD)
def test_bad_archives(files: BlobFiles, tmp_path: Path, name: str) -> None:
    make, error = BAD[name]
    with pytest.raises(error):
        taken(files, tmp_path, make())
    assert list(files.parts()) == []
    assert {p.name for p in tmp_path.iterdir()} == {"archive", "blobs"}
    for found, _ in files.all():  # whatever was taken is right
        files.read(found, 1 << 30)


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
    "no JSON": (lambda m: m.update({blob_name(digest(b"{")): b"{"}) or entry_of(b"{"), "JSON"),  # type: ignore[redundant-expr]
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
    bad: list[Any] = [
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
    bad: list[Any] = [
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
