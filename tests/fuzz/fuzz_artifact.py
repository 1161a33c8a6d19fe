# SPDX-License-Identifier: Apache-2.0
"""Manifests of OCI artifacts: an AgentError, else paths that stay below the volume."""

from __future__ import annotations

import json
from random import Random

from criagent.base.errors import CorruptError, UnsupportedError
from criagent.image.documents.artifact import artifact_layers
from criagent.image.documents.manifest import OCI_MANIFEST, parse_document
from tests.fuzz.frame import mutate_json, words_of

DIGEST = "sha256:" + "1" * 64
PIECE = {"digest": DIGEST, "size": 7, "mediaType": "application/vnd.cncf.model.weight.v1.tar"}
MANIFEST = {
    "schemaVersion": 2,
    "artifactType": "application/vnd.cncf.model.manifest.v1+json",
    "config": {"digest": DIGEST, "size": 2, "mediaType": "application/vnd.oci.empty.v1+json"},
    "layers": [
        {**PIECE, "annotations": {"org.cncf.model.filepath": "a/../b"}},
        {
            **PIECE,
            "annotations": {
                "org.opencontainers.image.title": "./dir/file",
                "io.deis.oras.content.unpack": "true",
                "io.deis.oras.content.digest": DIGEST,
            },
        },
        {**PIECE, "annotations": {"org.opencontainers.image.title": "/etc/.wh.x"}},
    ],
    "modelfs": {"type": "layers", "diffIds": [DIGEST, "x", DIGEST]},
}


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    document = json.dumps(MANIFEST).encode()
    return mutate_json(rnd, rnd.choice([document, *seeds]), words_of(MANIFEST))


def check(data: bytes) -> None:
    """The document is its own configuration, too."""
    try:
        document = parse_document(data, OCI_MANIFEST)
        found = artifact_layers(document, data, "kind")
    except (CorruptError, UnsupportedError) as exc:
        assert len(str(exc)) < 2000
        return
    paths = [layer.path for layer in found if layer.path]
    assert len(set(paths)) == len(paths)
    for path in paths:
        names = path.split("/")
        assert path.isprintable()
        assert all(name and name not in {".", ".."} for name in names)
        assert not any(name.startswith(".wh.") for name in names)
