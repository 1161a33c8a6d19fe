# SPDX-License-Identifier: Apache-2.0
"""Manifests and indexes: CorruptError or UnsupportedError, else a document with sane parts."""

from __future__ import annotations

import json
from random import Random

from criagent.base.errors import CorruptError, UnsupportedError
from criagent.image.documents import manifest
from tests.fuzz.frame import mutate_json, words_of

D = "sha256:" + "a" * 64
MANIFEST = {
    "schemaVersion": 2,
    "mediaType": manifest.OCI_MANIFEST,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": D, "size": 5},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": D, "size": 6}],
    "annotations": {"a": "b"},
}
PLATFORM = {"os": "linux", "architecture": "arm", "variant": "v7", "os.features": ["a"]}
INDEX = {
    "schemaVersion": 2,
    "mediaType": manifest.OCI_INDEX,
    "manifests": [{"digest": D, "size": 3, "platform": PLATFORM}, {"digest": D, "size": 4}],
}
SEEDS = [json.dumps(document).encode() for document in (MANIFEST, INDEX)]
WORDS = [*words_of(MANIFEST, INDEX), "urls", "artifactType", "subject", "data", "fsLayers"]


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return mutate_json(rnd, rnd.choice([*SEEDS, *seeds]), WORDS)


def check(data: bytes) -> None:
    for media_type in ("", manifest.OCI_MANIFEST, manifest.OCI_INDEX):
        try:
            document = manifest.parse_document(data, media_type)
        except (CorruptError, UnsupportedError) as exc:
            assert len(str(exc)) < 2000
            continue
        assert manifest.parse_document(data, media_type) == document
        assert (document.config is None) == document.is_index
        for entry in document.layers or ():  # an index may list entries that are passed over
            assert entry.size >= 0
            assert len(entry.parsed.hex) >= 64
