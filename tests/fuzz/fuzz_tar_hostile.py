# SPDX-License-Identifier: Apache-2.0
"""Hostile archives: nothing outside the root changes, and only the documented errors come."""

from __future__ import annotations

import errno
import os
from random import Random

from criagent.image.tar.decompress import BadLayerError
from criagent.image.unpack.extract import TooLargeError
from criagent.image.unpack.layer_tree import Below
from criagent.image.unpack.protocol import NeedsLowerLayers
from criagent.kernel import mount
from tests.fuzz.frame import mutate_bytes
from tests.fuzz.layer_ground import TOP, extract, facts, fresh
from tests.fuzz.tars import hostile, sealed

OUTSIDE = TOP / "outside"
(OUTSIDE / "keep/deep").mkdir(parents=True)
(OUTSIDE / "keep/file").write_text("of the host")
(OUTSIDE / "keep/file").chmod(0o600)
(OUTSIDE / "keep/link").symlink_to("file")
LOWER = TOP / "lower"
(LOWER / "a/b").mkdir(parents=True)
(LOWER / "c").mkdir()
for name, target in {"l": "../../outside", "m": "/", "d": "a"}.items():
    (LOWER / name).symlink_to(target)
(LOWER / "a/keep").write_text("x")
os.link(LOWER / "a/keep", LOWER / "b")
BEFORE = facts(OUTSIDE, directory_times=True), facts(LOWER, directory_times=True)


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    data = hostile(rnd, tough=rnd.choice([0.02, 0.02, 0.3]))
    if seeds and rnd.random() < 0.1:
        data = rnd.choice(seeds)
    return sealed(mutate_bytes(rnd, data, [])) if rnd.random() < 0.2 else data


def check(data: bytes) -> None:
    for below in Below:
        root = fresh("root")
        try:
            if below is Below.MERGED:
                work, target = fresh("work"), fresh("merged")
                mount.overlay([LOWER], root, work, target)
                try:
                    extract(data, target, below)
                finally:
                    mount.umount2(target)
            else:
                extract(data, root, below)
        except (BadLayerError, TooLargeError) as exc:
            assert len(str(exc)) < 2000
        except NeedsLowerLayers:
            assert below is Below.UNKNOWN
        except OSError as exc:
            assert exc.errno == errno.ENOSPC
    assert (facts(OUTSIDE, directory_times=True), facts(LOWER, directory_times=True)) == BEFORE
