# SPDX-License-Identifier: Apache-2.0
"""Seccomp profiles of the node: InvalidRequestError, else a profile that is JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random

import msgspec

from criagent.base.errors import InvalidRequestError
from criagent.model.common import ProfileType, SecurityProfile
from criagent.model.container import ContainerSecurity
from criagent.runtime.spec.security.seccomp import seccomp_profile
from tests.fuzz.frame import mutate_json, words_of

PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        {
            "names": ["read", "write"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            "includes": {"caps": ["CAP_SYS_ADMIN"], "minKernel": "4.8", "arches": ["amd64"]},
            "excludes": {"arches": ["s390x"]},
        },
        {"name": "kill", "action": "SCMP_ACT_TRAP", "errnoRet": 5, "comment": "x"},
    ],
}
SEEDS = [json.dumps(PROFILE).encode()]
_TOP = tempfile.TemporaryDirectory(prefix="criagent-fuzz-")
_FILE = Path(_TOP.name, "profile.json")
_SECURITY = ContainerSecurity(
    seccomp=SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref=str(_FILE))
)


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return mutate_json(rnd, rnd.choice([*SEEDS, *seeds]), words_of(PROFILE))


def check(data: bytes) -> None:
    _FILE.write_bytes(data)
    try:
        found = seccomp_profile(
            _SECURITY,
            machine="x86_64",
            capabilities=["CAP_SYS_ADMIN"],
            pulled=lambda ref: ref.encode(),
        )
    except InvalidRequestError as exc:
        assert len(str(exc)) < 5000
        return
    assert found is not None
    assert json.loads(msgspec.json.encode(found.profile)) is not None
