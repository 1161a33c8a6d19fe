"""The OCI runtime handlers: what each program is and can do, asked once at start."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
from pathlib import Path

from criagent.child import PipeReader, killed_on_exit, spawn

_LIMIT_S = 10.0
_VERSION = re.compile(r"version[: ]+v?([0-9]+\.[0-9]+(?:\.[0-9]+)?\S*)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HandlerFacts:
    """One configured handler. `problem` says why it cannot be used, "" = it can."""

    name: str
    path: Path
    type: str
    version: str = ""
    recursive_read_only: bool = False
    user_namespaces: bool = False
    problem: str = ""


async def probe(name: str, path: Path, kind: str) -> HandlerFacts:
    """Version and features of the program at `path`; never fails, but tells a problem."""
    facts = HandlerFacts(name=name, path=path, type=kind)
    try:
        version = await output_of([path, "--version"])
    except OSError as exc:
        problem = f"{path} cannot be run: {exc.strerror}; install {kind}"
        return dataclasses.replace(facts, problem=problem)
    except TimeoutError:
        return dataclasses.replace(facts, problem=f"{path} --version hangs")
    match = _VERSION.search(version)
    options: set[str] = set()
    try:
        features = json.loads(await output_of([path, "features"]))
        options = set(features.get("mountOptions") or ())
    except (OSError, TimeoutError, ValueError, AttributeError):
        pass  # an older runtime without the subcommand has none of them
    return dataclasses.replace(
        facts, version=match[1] if match else "", recursive_read_only="rro" in options
    )


async def output_of(command: list[str | Path]) -> str:
    """Standard output of a short command. Raises OSError, TimeoutError."""
    read, write = os.pipe()
    reader = PipeReader(read, limit=1 << 20)
    try:
        try:
            child = spawn(command, stdout=write)
        finally:
            os.close(write)
        async with killed_on_exit(child), asyncio.timeout(_LIMIT_S):
            await child.wait()
            await reader.ended()
    finally:
        reader.close()
    return bytes(reader.data).decode(errors="replace")
