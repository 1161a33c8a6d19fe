# SPDX-License-Identifier: Apache-2.0
"""Image documents are read as Go's encoding/json reads them; the cases were observed with Go."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from criagent.image.documents import gojson, manifest
from criagent.image.documents.gojson import MalformedError, Slice

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "image-documents.json").read_text())[
    "cases"
]
Json = dict[str, Any]


def listed(value: Slice | None) -> list[Any]:
    return [] if value is None else value.items


def descriptor(raw: Json) -> Json:
    platform = raw["platform"]
    if platform is not None:
        names = ("os", "architecture", "variant", "os.version")
        platform = [*(platform[name] for name in names), listed(platform["os.features"])]
    fields = ("mediaType", "digest", "size", "annotations", "artifactType")
    made = {name: raw[name] for name in fields}
    made |= {"urls": listed(raw["urls"]), "platform": platform}
    return {key: value for key, value in made.items() if value not in ("", [], None)}


def read(kind: str, data: bytes) -> Json:
    """The document in the shape of the vectors."""
    if kind == "config":
        raw = manifest._CONFIGURATION.decode(data)
        process = raw["config"]
        made = {name: raw[name] for name in ("os", "architecture", "variant")}
        made |= {
            "created": raw["created"] is not None,
            "diffIds": listed(raw["rootfs"]["diff_ids"]),
        }
        made |= {"user": process["User"], "workingDir": process["WorkingDir"]}
        made |= {"stopSignal": process["StopSignal"], "labels": process["Labels"]}
        made |= {name: listed(process[name.title()]) for name in ("env", "entrypoint", "cmd")}
        made |= {"volumes": sorted(process["Volumes"] or {})}
        return {key: value for key, value in made.items() if value not in ("", [], None, False)}
    if kind == "index":
        raw = manifest._INDEX.decode(data)
        made = {"manifests": [descriptor(one) for one in listed(raw["manifests"])]}
    else:
        raw = manifest._MANIFEST.decode(data)
        made = {
            "config": descriptor(raw["config"]),
            "layers": [descriptor(one) for one in listed(raw["layers"])],
        }
    made["v"] = raw["schemaVersion"]
    texts = {name: raw[name] for name in ("mediaType", "artifactType") if raw[name]}
    return {**made, **texts}


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["case"])
def test_what_go_reads_is_read_and_what_it_refuses_is_refused(case: Json) -> None:
    data = case["text"].encode() if "text" in case else base64.b64decode(case["base64"])
    if case["go"] is None:
        with pytest.raises(MalformedError):
            read(case["kind"], data)
    else:
        assert read(case["kind"], data) == case["go"]


LIMITS = {
    "values": b'{"layers":[' + b"{}," * 100_000 + b"{}]}",
    "quotes": b'"' * (8 << 20),
    "open brackets": b"[" * (8 << 20),
    "closing brackets": b"]" * (8 << 20),
    "depth": b'{"x":' * 201 + b"1" + b"}" * 201,
    "bytes that are no UTF-8": b'"' + b"\xff" * (8 << 20) + b'"',
    "surrogates": b'"' + b"\\ud800" * 1_000_000 + b'"',
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_hold_before_anything_is_built(name: str) -> None:
    with pytest.raises(MalformedError) as caught:
        gojson.parse(LIMITS[name])
    assert len(str(caught.value)) < 200


def test_text_that_looks_like_values_is_text() -> None:
    embedded = json.dumps({"sbom": [{"a": [1, 2, {"b": '"\\'}]}] * 60_000})
    assert len(gojson.parse(json.dumps({"x": embedded}).encode())[0][1]) > 1 << 20


def test_errors_name_the_field_and_cut_what_they_quote() -> None:
    data = json.dumps({"config": {"digest": "x", "size": 1}, "layers": [{"size": 10**30}]})
    with pytest.raises(MalformedError, match=r"^layers: size: the number 10{30} does not fit"):
        manifest._MANIFEST.decode(data.encode())
    with pytest.raises(MalformedError) as caught:
        manifest._MANIFEST.decode(b'{"config":{"size":' + b"1" * 100_000 + b"}}")
    assert len(str(caught.value)) < 200


def test_plain_values_for_people() -> None:
    text = '{"a":[1,2.5,-3,true,null,"x\\ud800"],"a":{"b":1e2}}'
    assert gojson.plain(gojson.parse(text.encode())) == {"a": {"b": 100.0}}
    assert gojson.plain(gojson.parse(b'[1,2.5,-3,true,null,"\\ud800"]')) == [
        1,
        2.5,
        -3,
        True,
        None,
        "\ufffd",
    ]
    large = gojson.plain(gojson.parse(b"[1e400," + b"9" * 5000 + b"]"))
    assert large == ["1e400", "9" * 5000]  # no JSON writer of ours could write them as numbers
