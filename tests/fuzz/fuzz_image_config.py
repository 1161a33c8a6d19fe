# SPDX-License-Identifier: Apache-2.0
"""Image configurations: CorruptError or UnsupportedError, else digests that chain."""

from __future__ import annotations

import json
from random import Random

from criagent.base.errors import CorruptError, UnsupportedError
from criagent.image.documents.manifest import chain_ids, parse_configuration
from tests.fuzz.frame import mutate_json, words_of

D = "sha256:" + "a" * 64
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [D, D]},
    "created": "2026-01-01T00:00:00Z",
    "config": {
        "User": "a:b", "Env": ["A=b"], "Cmd": ["x"], "Entrypoint": ["y"], "WorkingDir": "/w",
        "Volumes": {"/v": {}}, "Labels": {"a": "b"}, "StopSignal": "SIGTERM",
        "ExposedPorts": {"80/tcp": {}},
    },
    "history": [{"created_by": "x", "empty_layer": True}],
}  # fmt: skip
SEEDS = [json.dumps(CONFIG).encode()]
WORDS = [*words_of(CONFIG), "ArgsEscaped", "Healthcheck", "OnBuild", "variant", "Shell"]


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return mutate_json(rnd, rnd.choice([*SEEDS, *seeds]), WORDS)


def check(data: bytes) -> None:
    try:
        found = parse_configuration(data)
    except (CorruptError, UnsupportedError) as exc:
        assert len(str(exc)) < 2000
        return
    assert parse_configuration(data) == found
    assert len(chain_ids(found.diff_ids)) == len(found.diff_ids)
