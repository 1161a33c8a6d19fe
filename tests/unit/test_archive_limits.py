# SPDX-License-Identifier: Apache-2.0
"""Limits of image archives: members, names, links, layers, sizes, and mutated bytes."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tarfile
from pathlib import Path

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
from criagent.image.archive.room import Room
from criagent.image.blobs import BlobFiles
from tests.support.archive_cases import (
    LAYER,
    LAYERS,
    PACK,
    blob_name,
    contents,
    digest,
    docker,
    layout,
    link,
    taken,
    tar,
    without,
)


@pytest.fixture
def files(tmp_path: Path) -> BlobFiles:
    made = BlobFiles(tmp_path / "blobs")
    made.prepare()
    return made


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
