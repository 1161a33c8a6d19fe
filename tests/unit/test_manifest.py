# SPDX-License-Identifier: Apache-2.0
"""Manifests and configurations from anywhere: parsed, or refused with the documented errors."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.errors import CorruptError, UnsupportedError
from criagent.image.documents.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_DOCUMENT,
    OCI_INDEX,
    OCI_MANIFEST,
    Document,
    canonical_json,
    chain_ids,
    image_configuration,
    image_layers,
    parse_configuration,
    parse_document,
)

A, B = ("sha256:" + letter * 64 for letter in "ab")
ENTRY = {"digest": A, "size": 1}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "config": ENTRY, "layers": [ENTRY]}
INDEX: dict[str, Any] = {"schemaVersion": 2, "manifests": [ENTRY]}


def parse(document: object, kind: str = "") -> Document:
    return parse_document(json.dumps(document).encode(), kind)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (MANIFEST, ""),
        (MANIFEST, OCI_MANIFEST),
        (MANIFEST, DOCKER_MANIFEST),
        (MANIFEST, f"{OCI_MANIFEST}; charset=utf-8"),
        (MANIFEST, "text/plain"),
        ({**MANIFEST, "mediaType": OCI_MANIFEST}, OCI_MANIFEST),
        ({**MANIFEST, "layers": []}, ""),
        ({**MANIFEST, "layers": None}, ""),
        ({**MANIFEST, "unknown": {"a": [1]}}, ""),
        (INDEX, OCI_INDEX),
        (INDEX, DOCKER_LIST),
        ({**INDEX, "manifests": []}, ""),
        ({**INDEX, "manifests": None}, OCI_INDEX),
        ({**INDEX, "manifests": [{"digest": "md5:x", "size": -1}]}, ""),  # costs itself only
        ({**MANIFEST, "schemaVersion": 1}, ""),
        (MANIFEST, OCI_MANIFEST.upper()),
        (MANIFEST, DOCKER_MANIFEST + ";"),
    ],
)
def test_good_documents(document: dict[str, Any], kind: str) -> None:
    assert parse(document, kind).is_index == ("manifests" in document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        None,
        1,
        {"schemaVersion": 2},
        {**MANIFEST, "manifests": [ENTRY]},
        {"layers": [ENTRY]},
        {**MANIFEST, "config": None},
        {**MANIFEST, "config": {"size": 1}},
        {**MANIFEST, "config": {"digest": A, "size": -1}},
        {**MANIFEST, "config": {"digest": A, "size": 1 << 53}},
        {**MANIFEST, "config": {"digest": A, "size": "1"}},
        {**MANIFEST, "config": {"digest": "sha256:../../x", "size": 1}},
        {**MANIFEST, "layers": [{"digest": "x", "size": 1}]},
        {**MANIFEST, "layers": {}},
        {**MANIFEST, "layers": [ENTRY] * 501},
        {**INDEX, "manifests": [ENTRY] * 1001},
        {**MANIFEST, "config": {"digest": A, "size": 1, "urls": ["u"] * 33}},
        {**MANIFEST, "manifests": None},  # a key that is there is there, also for containerd
        {**INDEX, "layers": None},
        {**MANIFEST, "config": {}},
        {**MANIFEST, "Manifests": [ENTRY]},
        {**MANIFEST, "mediaType": OCI_INDEX},
        {**INDEX, "mediaType": OCI_MANIFEST},
    ],
)
def test_bad_documents(document: object) -> None:
    with pytest.raises(CorruptError):
        parse(document)


@pytest.mark.parametrize(
    ("document", "kind"), [(MANIFEST, OCI_INDEX), (INDEX, OCI_MANIFEST), (MANIFEST, DOCKER_LIST)]
)
def test_a_document_is_what_it_was_served_as(document: dict[str, Any], kind: str) -> None:
    with pytest.raises(CorruptError, match="served as"):
        parse(document, kind)


def test_schema_1_says_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match="push it again"):
        parse({"schemaVersion": 1, "fsLayers": []})


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"layers":' * 50_000, b" " * (MAX_DOCUMENT + 1)],
    ids=["empty", "cut", "no text", "nested", "nested maps", "large"],
)
def test_what_is_no_document(data: bytes) -> None:
    with pytest.raises(CorruptError):
        parse_document(data, "")
    with pytest.raises(CorruptError):
        parse_configuration(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size"]
CONFIG_FIELDS = ["rootfs", "diff_ids", "config", "Env", "Cmd", "User", "Volumes", "created"]


def mutated(base: dict[str, Any], fields: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    changes = st.dictionaries(
        st.sampled_from(fields), JSON | st.dictionaries(st.sampled_from(fields), JSON), max_size=3
    )
    return changes.map(lambda change: {**base, **change})


@given(mutated(MANIFEST, FIELDS) | mutated(INDEX, FIELDS), st.sampled_from(["", OCI_INDEX]))
def test_mutated_documents_parse_or_are_corrupt(document: dict[str, Any], kind: str) -> None:
    try:
        parsed = parse(document, kind)
    except (CorruptError, UnsupportedError):
        return
    for entry in parsed.layers:
        assert str(entry.parsed)
        assert entry.size >= 0


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_corrupt(data: bytes) -> None:
    for parse_any in (lambda d: parse_document(d, ""), parse_configuration):
        with contextlib.suppress(CorruptError, UnsupportedError):
            parse_any(data)


@given(mutated({"rootfs": {"diff_ids": [A]}}, CONFIG_FIELDS))
def test_mutated_configurations_parse_or_are_corrupt(document: dict[str, Any]) -> None:
    with contextlib.suppress(CorruptError):
        parse_configuration(json.dumps(document).encode())


def test_a_configuration_carries_everything_over() -> None:
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "rootfs": {"type": "layers", "diff_ids": [A, B]},
        "config": {
            "User": "1:2",
            "Env": ["A=b", "C"],
            "Entrypoint": ["/e"],
            "Cmd": ["c"],
            "WorkingDir": "/w",
            "StopSignal": "SIGINT",
            "Volumes": {"/v": {}},
            "Labels": {"k": "v"},
        },
    }
    parsed = parse_configuration(json.dumps(document).encode())
    config = parsed.config
    assert (config.user, config.env, config.entrypoint) == ("1:2", ("A=b", "C"), ("/e",))
    assert (config.cmd, config.working_dir, config.stop_signal) == (("c",), "/w", "SIGINT")
    assert (config.volumes, config.labels) == (("/v",), {"k": "v"})
    assert parsed.diff_ids == (A, B)
    assert str(parsed.platform) == "linux/amd64"


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"rootfs": {}},
        {"rootfs": {"diff_ids": None}},  # Go's writing of an image without layers
        {"rootfs": {"diff_ids": []}, "config": None},
        {"rootfs": {"diff_ids": []}, "config": {"Env": None, "Cmd": None, "Labels": None}},
    ],
)
def test_nulls_of_go_are_empty(document: dict[str, Any]) -> None:
    parsed = parse_configuration(json.dumps(document).encode())
    assert (parsed.diff_ids, parsed.config.env, parsed.config.cmd) == ((), (), ())


@pytest.mark.parametrize(
    "document",
    [
        {"rootfs": {"diff_ids": ["x"]}},
        {"rootfs": {"diff_ids": [1]}},
        {"rootfs": {"diff_ids": [A] * 501}},
        {"config": {"Env": ["A=b"] * 10_001}},
        {"config": {"Cmd": ["x"] * 10_001}},
        {"config": {"Labels": {str(n): "" for n in range(10_001)}}},
        {"config": {"Volumes": {f"/{n}": {} for n in range(1001)}}},
    ],
)
def test_bad_configurations(document: dict[str, Any]) -> None:
    with pytest.raises(CorruptError):
        parse_configuration(json.dumps(document).encode())


CONFIG = "application/vnd.oci.image.config.v1+json"


@pytest.mark.parametrize(
    ("artifact", "kind", "data", "told"),
    [
        ("application/vnd.example.model", CONFIG, {}, "application/vnd.example.model"),
        ("", "application/vnd.oci.empty.v1+json", {}, "application/vnd.oci.empty.v1"),
        ("", "application/vnd.cncf.helm.config.v1+json", {"name": "chart"}, "helm"),
        ("", "application/vnd.cncf.helm.config.v1+json", {"config": "x"}, "helm"),
        ("", "x" * 5000, {}, "x" * 200),
        ("", CONFIG, {"rootfs": {"diff_ids": 5}}, None),
        ("", "", {"config": 5}, None),
        ("", "", {}, ""),
        ("application/vnd.example", CONFIG, {"rootfs": {"diff_ids": [A]}}, ""),
        ("", "application/vnd.example", {"rootfs": {"diff_ids": [A]}}, ""),
        ("", "application/octet-stream", {"rootfs": {"diff_ids": []}}, ""),
        ("", CONFIG, {"rootfs": {"type": "squashfs", "diff_ids": [A]}}, "type 'squashfs'"),
    ],
)
def test_artifacts_are_told_from_damaged_images(
    artifact: str, kind: str, data: dict[str, Any], told: str | None
) -> None:
    config = {**ENTRY, "mediaType": kind}
    document = parse({**MANIFEST, "artifactType": artifact, "config": config})
    content = json.dumps(data).encode()
    if told == "":
        assert image_configuration(document, content).config.env == ()
    elif told is None:
        with pytest.raises(CorruptError):
            image_configuration(document, content)
    else:
        with pytest.raises(UnsupportedError, match=told) as caught:
            image_configuration(document, content)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("application/vnd.dev.cosign.simplesigning.v1+json", "simplesigning"),
        ("application/vnd.in-toto+json", "in-toto"),
        ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", f"its layer {A} is encrypted"),
    ],
)
def test_layers_that_are_no_file_systems_are_refused(kind: str, said: str) -> None:
    """Signatures and attestations have the configuration of an image, and one diff ID a layer."""
    document = parse({**MANIFEST, "layers": [{**ENTRY, "mediaType": kind}]})
    content = json.dumps({"rootfs": {"type": "layers", "diff_ids": [A]}}).encode()
    with pytest.raises(UnsupportedError, match=said):
        image_configuration(document, content)


def test_layers_and_diff_ids_must_pair_up() -> None:
    configuration = parse_configuration(canonical_json({"rootfs": {"diff_ids": [A, B]}}))
    with pytest.raises(CorruptError, match="1 layers but 2"):
        image_layers(parse(MANIFEST), configuration)
    layers = image_layers(parse({**MANIFEST, "layers": [ENTRY, ENTRY]}), configuration)
    assert [layer.chain_id for layer in layers] == list(chain_ids((A, B)))


def test_chain_ids_name_all_that_is_below() -> None:
    assert chain_ids(()) == ()
    assert chain_ids((A,)) == (A,)
    assert chain_ids((A, B))[0] == A
    assert chain_ids((A, A))[1] not in {A, chain_ids((A, B))[1]}
    assert chain_ids((A, B, A))[:2] == chain_ids((A, B))
