# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles from registries: InvalidRequestError, else one that loosens nothing."""

from __future__ import annotations

import itertools
import json
from random import Random

import msgspec

from criagent.base.errors import InvalidRequestError
from criagent.runtime.spec.security.capabilities import DEFAULT
from criagent.runtime.spec.security.seccomp import default_profile
from criagent.runtime.spec.security.seccomp_merge import intersection
from criagent.runtime.spec.security.seccomp_pulled import pulled_profile
from tests.fuzz.frame import mutate_json, words_of
from tests.support.seccomp_answers import random_profile, strictness

PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "defaultErrnoRet": 1,
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        {
            "names": ["socket", "chmod"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 38,
            "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
        },
        {"names": ["kill"], "action": "SCMP_ACT_TRAP"},
    ],
}
_BASES = [
    default_profile("x86_64", DEFAULT),
    *(random_profile(Random(seed)) for seed in range(8)),
]
_CALLS = list(itertools.product(("socket", "chmod", "kill", "read"), (0, 1, 3), (0, 2)))


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    if rnd.random() < 0.5:
        return json.dumps(random_profile(rnd)).encode()
    document = json.dumps(PROFILE).encode()
    return mutate_json(rnd, rnd.choice([document, *seeds]), words_of(PROFILE))


def check(data: bytes) -> None:
    try:
        own = pulled_profile(data)
    except InvalidRequestError as exc:
        assert len(str(exc)) < 2000
        return
    for base in _BASES:
        found = intersection(base, own, "x86_64").profile
        msgspec.json.encode(found)
        for name, a, b in _CALLS:
            args = (a, b, 0, 0, 0, 0)
            wanted = max(strictness(one, name, args) for one in (base, own))
            assert strictness(found, name, args) >= wanted, (name, args)
