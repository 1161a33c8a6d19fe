# SPDX-License-Identifier: Apache-2.0
"""Messages between the daemon and its unpack workers: one JSON document per line.

A request is answered by any number of Progress and then by Done, Imported, Counted, Compared or
Failed; a fresh worker sends Done before its first request. Both ends run the same code, so an
unknown message is a bug. The worker imports this, so it uses only the standard library.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class NeedsLowerLayers(Exception):  # noqa: N818 - an answer, not a failure
    """The layer must be written through the layers below it."""


class Reason(StrEnum):
    """Why a request failed."""

    LAYER = "layer"  # it is malformed, hostile or not what its digests say
    FULL = "full"  # no space for it
    LOWER_LAYERS = "lowers"  # NeedsLowerLayers
    ERROR = "error"  # an error of criagent.base.errors
    SYSTEM = "system"  # the node's failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """Write the layer file `blob`, of `digest` and `diff_id`, below the directory `root`.

    With a `path` the blob is that file.

    `lower_layers` are the directories of the layers below it, topmost first, or None to do without
    them: then the answer may be LOWER_LAYERS, or that the layer is to be settled. With `in_place`
    there are none, and `root` has their content. `scratch` is for the worker's own files.
    """

    blob: str
    root: str
    scratch: str
    digest: str
    diff_id: str
    path: str
    lower_layers: list[str] | None
    in_place: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Fit the layer below `root`, written without its `lower_layers` with `scratch`, to them."""

    root: str
    scratch: str
    lower_layers: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """Take the blobs of the image archive `archive` into the directory `root`."""

    archive: str
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """Count what is below each of the directories `roots`: `snapshots.content_count`."""

    root: str  # of the snapshots, for errors
    roots: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """Compare the tree `root`, which was unpacked before, with `expected`: `compare.py`."""

    root: str
    expected: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`size` more bytes of the layer file were read."""

    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The request is served. Of Extract: what the layer took, and whether it must be settled.

    `content` has the fields of its `ContentCount`, None = it is to be counted.
    """

    used_bytes: int = 0
    inodes: int = 0
    unsettled: bool = False
    content: tuple[int, int, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Count is served: the fields of `ContentCount` of each root."""

    counts: list[tuple[int, int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Compare is served: the first differences, and how many there are."""

    first: list[str]
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Import is served: names by the digest of each manifest, and entries left out with the why."""

    images: dict[str, list[str]]
    skipped: list[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request failed with this text; `error` names the class of Reason.ERROR, `errno` is the
    number of Reason.SYSTEM.
    """

    reason: Reason
    text: str
    error: str = ""
    errno: int = 0


Request = Extract | Settle | Import | Count | Compare
Served = Done | Imported | Counted | Compared
Answer = Progress | Served | Failed
_REQUESTS = {kind.__name__: kind for kind in (Extract, Settle, Import, Count, Compare)}
_ANSWERS = {kind.__name__: kind for kind in (Progress, Done, Imported, Counted, Compared, Failed)}


def encode(message: Request | Answer) -> bytes:
    """`message` as a line with its newline."""
    document = {"kind": type(message).__name__, **dataclasses.asdict(message)}
    return json.dumps(document).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """The request that `line` is."""
    document: dict[str, Any] = json.loads(line)
    return _REQUESTS[document.pop("kind")](**document)


def decode_answer(line: bytes) -> Answer:
    """The answer that `line` is."""
    document: dict[str, Any] = json.loads(line)
    if "reason" in document:
        document["reason"] = Reason(document["reason"])
    answer: Answer = _ANSWERS[document.pop("kind")](**document)
    return answer
