# SPDX-License-Identifier: Apache-2.0
"""A layer over another: written alone and settled, it shows what it shows written through it.

The lower layer has no symbolic links: whether a path leads through one that the upper layer
replaces later depends on the way it is written. Alone it does not, as in containerd.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from random import Random
from stat import S_IFDIR

from criagent.image.tar.decompress import BadLayerError, LayerStream
from criagent.image.tar.headers import DIRECTORY, entries
from criagent.image.unpack.extract import TooLargeError, clean
from criagent.image.unpack.layer_tree import Below
from criagent.image.unpack.protocol import NeedsLowerLayers
from criagent.image.unpack.settle import settle, write_unsettled
from criagent.kernel import mount
from tests.fuzz.layer_ground import Facts, extract, facts, fresh
from tests.fuzz.tars import hostile

SPLIT = b"-- the upper layer --"


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return hostile(rnd, tough=0, links=False) + SPLIT + hostile(rnd, tough=rnd.choice([0, 0, 0.05]))


def check(data: bytes) -> None:
    low, _, upper = data.partition(SPLIT)
    lower = fresh("lower")
    try:
        extract(low, lower, Below.NOTHING)
    except (BadLayerError, TooLargeError):
        return
    merged = _merged(lower, upper)
    top = fresh("alone") / "fs"
    top.mkdir()
    try:
        if write_unsettled(top.parent, extract(upper, top, Below.UNKNOWN)):
            _settle(top, lower)
    except NeedsLowerLayers:
        return
    except BadLayerError as exc:
        assert isinstance(merged, str), f"refused only alone: {exc}"
        return
    assert isinstance(merged, dict), f"refused only through the lower layer: {merged}"
    target = fresh("view")
    mount.overlay([top, lower], None, None, target)
    try:
        alone = facts(target, directory_times=False)
    finally:
        mount.umount2(target)
    explicit = _directories(upper)
    for found in (alone[0], merged):  # what was copied up before its whiteout came looks as below
        found.update({k: f[:1] for k, f in found.items() if f[0] == S_IFDIR and k not in explicit})
    different = {k: (alone[0].get(k), merged.get(k)) for k in {*alone[0], *merged}}
    different = {k: pair for k, pair in different.items() if pair[0] != pair[1] and k != "."}
    assert not different, different


def _directories(data: bytes) -> set[str]:
    stream = LayerStream(io.BytesIO(data))
    try:
        kinds = [(clean(entry.name), entry.kind) for entry in entries(stream)]
    finally:
        stream.close()
    return {os.fsdecode(path) for path, kind in kinds if kind == DIRECTORY}


def _settle(top: Path, lower: Path) -> None:
    """Through a mount, as in an image of many layers: it cannot end while anything is open."""
    target = fresh("below")
    mount.overlay([lower, fresh("empty")], None, None, target)
    try:
        settle(top, top.parent, target)
    finally:
        mount.umount2(target)


def _merged(lower: Path, upper: bytes) -> Facts | str:
    root, work, target = fresh("root"), fresh("work"), fresh("merged")
    mount.overlay([lower], root, work, target)
    try:
        extract(upper, target, Below.MERGED)
        return facts(target, directory_times=False)[0]
    except BadLayerError as exc:
        return str(exc)
    finally:
        mount.umount2(target)
