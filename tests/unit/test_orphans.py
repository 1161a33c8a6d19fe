# SPDX-License-Identifier: Apache-2.0
"""Orphans of a process that takes them in: reaped when they end, or adopted with their status."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# Each script runs in a process of its own: being a subreaper is for the whole of a process.
START = """
import asyncio, os, signal
from pathlib import Path
from criagent.process.child import ExpectedOrphan, killed_on_exit, run, spawn, take_in_orphans

async def orphan(script):
    "The pid of a process whose parent has ended."
    ended = await run(["sh", "-c", f"sh -c '{script}' & echo $!"], limit_s=20)
    return int(ended.output)

GATE = Path("gate")
# A parent that still lived would reap it.
GATED = "until [ -e gate ]; do sleep 0.01; done; exit "

async def reaped(pid):
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)

async def zombie(pid):
    async with asyncio.timeout(20):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            await asyncio.sleep(0.01)

async def main():
    take_in_orphans()
"""
END = """
asyncio.run(main())
print("well")
"""

SCRIPTS = {
    "an orphan that ends is reaped": """
        pid = await orphan("exit 5")
        await reaped(pid)
    """,
    "an orphan that lives on is a child and reaped later": """
        pid = await orphan("exec sleep 100000")
        os.kill(pid, signal.SIGKILL)
        await reaped(pid)
    """,
    "an expected one is adopted with its status": """
        expected = ExpectedOrphan()
        pid = await orphan(GATED + "7")
        child = expected.adopt(pid)
        GATE.touch()
        assert await child.wait() == 7
        await reaped(pid)
    """,
    "an expected one that has ended keeps its status": """
        expected = ExpectedOrphan()
        pid = await orphan(GATED + "9")
        GATE.touch()
        await zombie(pid)
        assert await expected.adopt(pid).wait() == 9
        await reaped(pid)
    """,
    "a signal is told as for any child": """
        expected = ExpectedOrphan()
        pid = await orphan("exec sleep 100000")
        child = expected.adopt(pid)
        async with killed_on_exit(child):
            pass
        assert await child.wait() == -signal.SIGKILL
    """,
    "what nobody adopts is reaped once it is expected no more": """
        expected = ExpectedOrphan()
        pid = await orphan(GATED + "1")
        GATE.touch()
        await zombie(pid)
        expected.release()
        expected.release()
        await reaped(pid)
    """,
    "children keep their own status beside orphans": """
        children = [spawn(["sh", "-c", f"sh -c true & exit {n}"]) for n in range(50)]
        assert [await child.wait() for child in children] == list(range(50))
    """,
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_orphans(script: str, tmp_path: Path) -> None:
    body = textwrap.indent(textwrap.dedent(script), "    ")
    done = subprocess.run(
        [sys.executable, "-c", START + body + END],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
