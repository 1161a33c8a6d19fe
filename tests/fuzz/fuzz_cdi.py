# SPDX-License-Identifier: Apache-2.0
"""CDI specs as JSON and YAML: SpecError, else the same spec every time."""

from __future__ import annotations

import json
from random import Random

from criagent.runtime.spec.cdi.file import SpecError, parse
from tests.fuzz.frame import mutate_bytes, mutate_json, words_of

EDITS = {
    "env": ["A=b"],
    "deviceNodes": [
        {"path": "/dev/x", "hostPath": "/dev/y", "type": "c", "major": 1, "minor": 3,
         "fileMode": 438, "permissions": "rw", "uid": 0, "gid": 0}
    ],
    "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"], "type": "bind"}],
    "hooks": [{"hookName": "prestart", "path": "/x", "args": ["a"], "env": ["B=c"], "timeout": 5}],
    "additionalGids": [1],
    "intelRdt": {"closID": "a"},
    "netDevices": [{"hostInterfaceName": "a", "name": "b"}],
}  # fmt: skip
SPEC = {
    "cdiVersion": "1.1.0",
    "kind": "vendor.com/class",
    "annotations": {"a": "b"},
    "devices": [{"name": "d", "containerEdits": EDITS}],
    "containerEdits": {"env": ["C=d"]},
}
YAML = (
    b'cdiVersion: "0.6.0"\nkind: vendor.com/net\ndevices:\n  - name: &n d\n    containerEdits:\n'
    b"      env: [A=b, *n]\n      mounts:\n        - {hostPath: /a, containerPath: /b}\n"
)
SEEDS = [json.dumps(SPEC).encode(), YAML]
TOKENS = [b"&a", b"*a", b"<<: *n", b"!!python/object:os.system", b"- ", b": ", b"|", b"{", b"\t"]


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    seed = rnd.choice([*SEEDS, *seeds])
    if seed.startswith(b"{"):
        return mutate_json(rnd, seed, words_of(SPEC))
    return mutate_bytes(rnd, seed, TOKENS)


def check(data: bytes) -> None:
    for yaml in (False, True):
        try:
            found = parse(data, yaml=yaml)
        except SpecError as exc:
            assert len(str(exc)) < 5000
            continue
        assert parse(data, yaml=yaml) == found
        assert found.devices
