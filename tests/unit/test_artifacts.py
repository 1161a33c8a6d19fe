# SPDX-License-Identifier: Apache-2.0
"""Layers of OCI artifacts as files: which, under which path, and which titles are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from criagent.base.errors import CorruptError, UnsupportedError
from criagent.image.documents.artifact import artifact_layers
from criagent.image.documents.manifest import EMPTY_CONFIG, OCI_MANIFEST, parse_document
from criagent.model.image import Layer
from tests.support.pulling import digest, entry

KIND = "application/vnd.example.model"
TITLE, FILEPATH = "org.opencontainers.image.title", "org.cncf.model.filepath"
UNPACK, CONTENT = "io.deis.oras.content.unpack", "io.deis.oras.content.digest"
TAR = "application/vnd.oci.image.layer.v1.tar+gzip"
WEIGHTS = "application/vnd.cncf.model.weight.v1."


def layer(content: Any = b"x", kind: Any = TAR, **notes: str) -> dict[str, Any]:
    return {**entry(content), "mediaType": kind, "annotations": notes}


def titled(*titles: str) -> list[dict[str, Any]]:
    return [layer(b"%d" % n, **{TITLE: title}) for n, title in enumerate(titles)]


def layers(described: list[dict[str, Any]], config: Any = None) -> tuple[Layer, ...]:
    manifest = {
        "schemaVersion": 2,
        "artifactType": KIND,
        "config": {**entry(b"{}"), "mediaType": EMPTY_CONFIG},
        "layers": described,
    }
    document = parse_document(json.dumps(manifest).encode(), OCI_MANIFEST)
    return artifact_layers(document, json.dumps(config or {}).encode(), KIND)


def test_a_layer_is_a_file_under_its_title() -> None:
    found = layers([*titled("model.bin", "conf/a.json", ".hidden", "./b"), layer()])
    assert [one.path for one in found] == ["model.bin", "conf/a.json", ".hidden", "b"]
    assert len({one.chain_id for one in found}) == 4


def test_what_modelpack_calls_a_file_path_is_a_title() -> None:
    (found,) = layers([layer(kind=WEIGHTS + "raw", **{FILEPATH: "w/model.safetensors"})])
    assert found.path == "w/model.safetensors"


def test_the_same_file_of_another_name_or_content_is_another_layer() -> None:
    one, name, content = (
        layers([layer(data, **{TITLE: title})])[0].chain_id
        for data, title in ((b"x", "a"), (b"x", "b"), (b"y", "a"))
    )
    assert len({one, name, content}) == 3


def test_a_directory_of_oras_is_an_archive_with_a_known_content() -> None:
    plain = digest(b"the tar")
    (found,) = layers([layer(**{TITLE: "folder", UNPACK: "true", CONTENT: plain})])
    assert (found.path, found.diff_id, found.chain_id) == ("", plain, plain)
    (unknown,) = layers([layer(**{TITLE: "folder", UNPACK: "true"})])
    assert unknown.path == "folder"


@pytest.mark.parametrize("form", ["tar", "tar+gzip", "tar+zstd"])
def test_an_archive_of_modelpack_has_its_content_in_the_configuration(form: str) -> None:
    plain = digest(b"the tar")
    described = [
        layer(kind=WEIGHTS + form, **{FILEPATH: "folder"}),
        layer(b"y", kind=WEIGHTS + "raw", **{FILEPATH: "file"}),
    ]
    config = {"modelfs": {"type": "layers", "diffIds": [plain, digest(b"y")]}}
    archive, file = layers(described, config)
    assert (archive.path, archive.diff_id) == ("", plain)
    assert file.path == "file"
    odd: list[Any] = [{}, {"modelfs": 5}, {"modelfs": {"diffIds": [plain]}}, {"modelfs": {}}, []]
    for wrong in odd:
        assert layers(described, wrong)[0].path == "folder"


@pytest.mark.parametrize(
    ("title", "why"),
    [
        ("/etc/passwd", "absolute"),
        ("../up", "leads through"),
        ("a/../../up", "leads through"),
        ("a/./b", "leads through"),
        ("a//b", "leads through"),
        ("a/", "leads through"),
        (".", "leads through"),
        ("./", "leads through"),
        (".wh.gone", "hide files"),
        ("a/.wh..wh..opq", "hide files"),
        ("a\x00b", "printed"),
        ("a\nb", "printed"),
        ("n" * 256, "255 bytes"),
        ("a/" * 2100 + "b", "too long"),
    ],
)
def test_a_title_that_cannot_be_a_file_is_refused(title: str, why: str) -> None:
    with pytest.raises(CorruptError, match=why) as caught:
        layers(titled("good", title))
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    ("titles", "why"),
    [(("a", "a"), "two layers"), (("a", "./a"), "two layers"), (("a/b", "a"), "directory of")],
)
def test_a_title_that_another_one_takes_is_refused(titles: tuple[str, str], why: str) -> None:
    with pytest.raises(CorruptError, match=why):
        layers(titled(*titles))


def test_an_artifact_without_files_is_refused_by_its_kind() -> None:
    for described in ([], [layer()]):
        with pytest.raises(UnsupportedError, match=f"{KIND}.* without files"):
            layers(described)
