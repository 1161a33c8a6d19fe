# SPDX-License-Identifier: Apache-2.0
"""Image references: refused with InvalidRequestError, or the same after being printed and read."""

from __future__ import annotations

from random import Random

from criagent.base.errors import InvalidRequestError
from criagent.image.documents.reference import parse_reference
from tests.fuzz.frame import mutate_bytes

D = b"sha256:" + b"0123456789abcdef" * 4
SEEDS = [
    b"busybox", b"docker.io/library/busybox:latest", b"localhost:5000/a/b__c/d-e.f:T-1@" + D,
    b"[::1]:5000/a", b"registry.k8s.io/pause@" + D, b"127.0.0.1:80/x:1", b"UPPER.example/x",
    b"a.b-c.d:65535/e--f/g.h_i:_.-", b"0123456789abcdef" * 4,
]  # fmt: skip
TOKENS = [b"/", b":", b"@", b"[", b"]", b".", b"__", b"--", b"sha512:", b"localhost", D, b"a" * 130]


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return mutate_bytes(rnd, rnd.choice([*SEEDS, *seeds]), TOKENS)


def check(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    try:
        found = parse_reference(text)
    except InvalidRequestError as exc:
        assert len(str(exc)) < 2500
        return
    assert len(found.repository) <= 255
    assert parse_reference(str(found)) == found
    assert parse_reference(str(found.with_default_tag())) == found.with_default_tag()
