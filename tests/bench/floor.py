# SPDX-License-Identifier: Apache-2.0
"""The floor of small calls: an empty grpc.aio server beside the agent, in turn.

`tests/node/up python3 -m tests.bench.floor`. The server answers Version in a process with the
agent's settings and nothing else. CPU time is that of the server's process for one call.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from criagent._proto import api_pb2, api_pb2_grpc
from criagent.process.priority import raise_all_threads
from tests.support.cri_client import Cri

ROUNDS = 9
CALLS = 300
_SOCKET = "/run/floor.sock"


class Empty(api_pb2_grpc.RuntimeServiceServicer):
    """Answers Version."""

    async def Version(self, request: Any, context: Any) -> api_pb2.VersionResponse:  # noqa: N802
        return api_pb2.VersionResponse(
            version="0.1.0", runtime_name="empty", runtime_version="0", runtime_api_version="v1"
        )


async def serve() -> None:
    """Serve on `_SOCKET` until stdin ends."""
    sys.setswitchinterval(0.001)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(Empty(), server)
    server.add_insecure_port(f"unix:{_SOCKET}")
    await server.start()
    with contextlib.suppress(PermissionError):
        raise_all_threads()
    gc.collect()
    gc.freeze()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def cpu_ms(pid: int) -> float:
    """CPU time of a process (man 2 clock_getres, CLOCK_PROCESS_CPUTIME_ID of another process)."""
    return time.clock_gettime(~pid << 3 | 2) * 1000


def measured(cri: Cri, pid: int) -> tuple[float, float]:
    """The median of a call, and the CPU time of one, in milliseconds."""
    request = api_pb2.VersionRequest()
    for _ in range(20):
        cri.runtime.Version(request)
    times = []
    before = cpu_ms(pid)
    for _ in range(CALLS):
        start = time.perf_counter()
        cri.runtime.Version(request)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times), (cpu_ms(pid) - before) / CALLS


def main() -> None:
    """Print both, medians of the rounds."""
    command = [sys.executable, "-m", "tests.bench.floor", "serve"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        agent = int(Path("/run/criagent.pid").read_text())
        servers = {"empty": (Cri(f"unix:{_SOCKET}"), process.pid), "criagent": (Cri(), agent)}
        rounds = [
            {name: measured(*server) for name, server in servers.items()} for _ in range(ROUNDS)
        ]
        process.communicate("")
    print(f"Version, medians of {ROUNDS} rounds of {CALLS} calls, load {os.getloadavg()[0]:.1f}")
    for name in servers:
        times, cpu = zip(*(one[name] for one in rounds), strict=True)
        print(f"{name:10}{statistics.median(times):8.2f} ms, CPU {statistics.median(cpu):.2f} ms")


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        main()
