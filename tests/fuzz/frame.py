# SPDX-License-Identifier: Apache-2.0
"""What every fuzz target shares: mutation by seeded random, limits of time and memory, replay.

A target is a module `fuzz_NAME.py` with `check(data)`, which raises when a property does not hold,
and `make(rnd, seeds)`, which gives the next input. Inputs that once failed are kept in
`seeds/NAME/` and are checked first, as they are.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NoReturn

HERE = Path(__file__).parent
FAILED = HERE.parents[1] / "build" / "fuzz"
CASE_CPU_S = 10.0
MEMORY = 2 << 30
LARGEST = 256 << 10  # bytes of a made document: the limits on size have tests of their own
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 1.5, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 1e308, "", "a",
    "\ud800", "\0", "é" * 300, "x" * 5000, "sha256:" + "a" * 64, [], {}, [[]], [{}], [None],
]  # fmt: skip


def mutate_bytes(rnd: Random, data: bytes, tokens: list[bytes]) -> bytes:
    """`data` with a few bytes changed, cut, repeated or replaced by one of `tokens`."""
    found = bytearray(data)
    for _ in range(rnd.randint(1, 6)):
        at = rnd.randrange(len(found) + 1)
        end = min(at + rnd.choice([1, 1, 2, 4, 40]), len(found))
        match rnd.randrange(5):
            case 0:
                found[at:end] = rnd.randbytes(end - at)
            case 1:
                del found[at:end]
            case 2:
                found[at:at] = found[at:end] * rnd.choice([1, 2, 50])
            case 3 if tokens:
                found[at : rnd.choice([at, end])] = rnd.choice(tokens)
            case _:
                found[at:at] = bytes([rnd.randrange(256)])
    return bytes(found)


def mutate_json(rnd: Random, data: bytes, words: list[str]) -> bytes:
    """A JSON document with other values, keys and shapes, now and then no longer one."""
    try:
        document = json.loads(data)
    except ValueError:
        return mutate_bytes(rnd, data, [b"{", b"}", b"[", b'"', b",", b":", b"\\u0000", b"1e999"])
    for _ in range(rnd.randint(1, 4)):
        document = _changed(rnd, document, words)
    text = json.dumps(document).encode()[:LARGEST]
    return (
        text if rnd.random() < 0.8 else mutate_bytes(rnd, text, [b"{", b'"', b"\\ud800", b"\xff"])
    )


def _changed(rnd: Random, node: Any, words: list[str]) -> Any:
    if isinstance(node, dict) and node:
        return _changed_object(rnd, node, words)
    if isinstance(node, list) and node:
        return _changed_array(rnd, node, words)
    if isinstance(node, str) and rnd.random() < 0.5:
        text = node.encode(errors="replace")
        return mutate_bytes(rnd, text, [b"/", b":", b"..", b"\n"]).decode(errors="replace")
    return rnd.choice([*ODD, rnd.choice(words)])


def _changed_object(rnd: Random, node: dict[str, Any], words: list[str]) -> dict[str, Any]:
    key = rnd.choice(list(node))
    match rnd.randrange(8):
        case 0:
            return {k: v for k, v in node.items() if k != key}
        case 1:
            return node | {rnd.choice(words): rnd.choice(ODD)}
        case 2:
            return node | {rnd.choice([key.upper(), key.swapcase(), key.title()]): node[key]}
        case _:
            return node | {key: _changed(rnd, node[key], words)}


def _changed_array(rnd: Random, node: list[Any], words: list[str]) -> list[Any]:
    at = rnd.randrange(len(node))
    match rnd.randrange(6):
        case 0:
            return node[:at] + node[at + 1 :]
        case 1:
            return node * rnd.choice([2, 2, 40])
        case _:
            return [*node[:at], _changed(rnd, node[at], words), *node[at + 1 :]]


def words_of(*documents: object) -> list[str]:
    """Keys and strings of documents, for `mutate_json`."""
    found: set[str] = set()
    for document in documents:
        if isinstance(document, dict):
            found.update(document, words_of(*document.values()))
        elif isinstance(document, list):
            found.update(words_of(*document))
        elif isinstance(document, str):
            found.add(document)
    return sorted(found)


def seeds_of(name: str) -> dict[str, bytes]:
    """The kept inputs of a target."""
    folder = HERE / "seeds" / name
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


def fuzz(name: str, seconds: float, seed: str) -> bool:
    """Run a target for `seconds`; False when it failed. The input is then below build/fuzz."""
    target = importlib.import_module(f"tests.fuzz.fuzz_{name}")
    _limit()
    seeds = seeds_of(name)
    for kept, data in seeds.items():
        if not _passes(target.check, data, f"{name}: the kept input {kept}"):
            return False
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = target.make(Random(f"{seed}:{count}"), list(seeds.values()))
        if not _passes(target.check, data, f"{name}: case {count} of SEED={seed}"):
            FAILED.mkdir(parents=True, exist_ok=True)
            file = FAILED / f"{name}-{seed}-{count}"
            file.write_bytes(data)
            print(f"{name}: once more: make fuzz FUZZ={name} INPUT=build/fuzz/{file.name}")
            return False
        count += 1
    print(f"{name}: {count} cases, SEED={seed}", flush=True)
    return True


def replay(name: str, file: Path) -> bool:
    """Check one input."""
    _limit()
    return _passes(
        importlib.import_module(f"tests.fuzz.fuzz_{name}").check, file.read_bytes(), str(file)
    )


def _passes(check: Callable[[bytes], None], data: bytes, what: str) -> bool:
    signal.setitimer(signal.ITIMER_VIRTUAL, CASE_CPU_S)
    try:
        check(data)
    except Exception:
        print(f"FAILED {what} ({len(data)} bytes)\n{traceback.format_exc()}", flush=True)
        return False
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return True


def _limit() -> None:
    def slow(*_: object) -> NoReturn:
        raise AssertionError(f"the input takes more than {CASE_CPU_S} s of CPU")

    signal.signal(signal.SIGVTALRM, slow)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    sys.setrecursionlimit(min(sys.getrecursionlimit(), 1000))
    os.umask(0)
