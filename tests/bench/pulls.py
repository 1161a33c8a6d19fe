# SPDX-License-Identifier: Apache-2.0
"""How long pulls take, and their CPU time, beside other runtimes on the same ground.

`tests/node/up python3 -m tests.bench.pulls criagent` measures the agent. In a node with another CRI
runtime, `python3 -m tests.bench.pulls NAME PROGRAM` measures that: PROGRAM NAME CMD… runs CMD with
the runtime up, its images below /var/lib/bench and $ENDPOINT as its socket.

The images (`pull_images.py`) come from a registry of this node and go to ext4 with a journal on a
loop file. PULLS_KINDS=layers,small,file and PULLS_CODECS=gzip,zstd choose them, PULLS_ROUNDS=1 says
how often. With PULLS_RTT_MS the registry is as far away, at PULLS_MBIT=400; PULLS_RESETS=0.01 is
then the share of pieces of 64 KiB with which the connection is reset. PULLS_LIST=1 calls
ListContainers all the time as well. Prints one line of JSON for each pull: seconds until it was
answered and until all was on disk, the CPU time of the daemon with its children and without them,
the load.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from tests.bench.pull_images import KINDS, fill, name
from tests.bench.storage_disks import ROOT, disk
from tests.bench.storage_images import REGISTRY, registry
from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.far_link import far_link
from tests.support.waiting import until

IMAGES = Path("/src/build/bench-pulls-registry")
ROUNDS = int(os.environ.get("PULLS_ROUNDS", "1"))
CHOSEN = os.environ.get("PULLS_KINDS", ",".join(KINDS)).split(",")
CODECS = os.environ.get("PULLS_CODECS", "gzip,zstd").split(",")
RTT_MS = float(os.environ.get("PULLS_RTT_MS", "0"))
MBIT = float(os.environ.get("PULLS_MBIT", "400"))
RESETS = float(os.environ.get("PULLS_RESETS", "0"))
LIST = bool(os.environ.get("PULLS_LIST"))
NEAR_PORT = int(REGISTRY.rpartition(":")[2])
FAR_PORT = 5002
LIMIT_S = 900.0
ATTEMPTS = 50  # of a pull, without a pause: the kubelet pauses for 10 s and more
_TICKS = os.sysconf("SC_CLK_TCK")
_PAUSE_S = 0.01  # between two calls of ListContainers
_REMOVED = 200  # inodes that a removed image may leave in use, of databases and directories


def cpu_s(daemon: int) -> tuple[float, float]:
    """CPU time in seconds of a process and its children, dead and alive, and of that its own."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
                used[int(entry.name)] = sum(map(int, fields[11:15]))
    stat = Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()
    family, todo = 0, [daemon]
    while todo:
        here = todo.pop()
        family += used.get(here, 0)
        todo += [pid for pid, parent in parents.items() if parent == here]
    return family / _TICKS, sum(map(int, stat[11:13])) / _TICKS


@contextlib.contextmanager
def listing(cri: Cri) -> Iterator[list[float]]:
    """Milliseconds of each call of ListContainers during the block; sorted after it."""
    times: list[float] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(_PAUSE_S):
            start = time.perf_counter()
            cri.runtime.ListContainers(api.ListContainersRequest())
            times.append((time.perf_counter() - start) * 1000)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield times
    finally:
        ended.set()
        thread.join()
        times.sort()


def inodes() -> int:
    facts = os.statvfs(ROOT)
    return facts.f_files - facts.f_ffree


def one_pull(cri: Cri, image: str, daemon: int) -> dict[str, float | str]:
    """Pull an image and remove it; the figures of the pull."""
    os.sync()
    before, used = inodes(), cpu_s(daemon)
    start = time.perf_counter()
    errors: list[str] = []
    with listing(cri) if LIST else contextlib.nullcontext() as times:
        while len(errors) < ATTEMPTS:
            try:
                cri.pull(image, LIMIT_S)
                break
            except grpc.RpcError as failure:
                errors.append(str(failure.details())[-200:])
        answered = time.perf_counter() - start
    os.sync()
    durable = time.perf_counter() - start
    used_now = cpu_s(daemon)
    figures: dict[str, float | str] = {
        "answered": round(answered, 2),
        "durable": round(durable, 2),
        "cpu": round(used_now[0] - used[0], 2),
        "own cpu": round(used_now[1] - used[1], 2),
        "load": round(os.getloadavg()[0], 1),
    }
    if errors:
        figures["failed"] = len(errors)
        figures["last error"] = errors[-1]
    if times:
        figures["lists"] = len(times)
        figures["list p50 ms"] = round(times[len(times) // 2], 1)
        figures["list p99 ms"] = round(times[len(times) * 99 // 100], 1)
        figures["list max ms"] = round(times[-1], 1)
    cri.remove_image(image)
    if len(errors) < ATTEMPTS:
        until(lambda: inodes() < before + _REMOVED, "the image to be gone", 300)
    return figures


def client(runtime: str, daemon: int, endpoint: str) -> None:
    """All pulls by a runtime that is up."""
    cri = Cri(endpoint)
    port = FAR_PORT if RTT_MS else NEAR_PORT
    for number in range(ROUNDS):
        for kind in CHOSEN:
            for codec in CODECS:
                image = f"127.0.0.1:{port}/{name(kind, codec)}"
                figures = one_pull(cri, image, daemon)
                line = {"runtime": runtime, "image": f"{kind}, {codec}", "round": number}
                print(json.dumps({**line, **figures}), flush=True)


def _measured(runtime: str, program: str) -> None:
    if program:
        again = [sys.executable, "-m", "tests.bench.pulls", runtime]
        subprocess.run([program, runtime, *again], check=True, env=os.environ | {"PULLS_UP": "1"})
        return
    agent.stop()
    agent.start(f'[storage]\nroot = "{ROOT}"\ndriver = "overlay"\n')
    try:
        client(
            runtime,
            int(Path("/run/criagent.pid").read_text()),
            "unix:///run/criagent/criagent.sock",
        )
    finally:
        agent.stop()


def main(runtime: str, program: str = "") -> None:
    """Everything that a run needs, and the run."""
    if os.environ.get("PULLS_UP"):
        pid = subprocess.run(["pidof", runtime], capture_output=True, text=True, check=True).stdout
        client(runtime, int(pid.split()[0]), f"unix://{os.environ['ENDPOINT']}")
        return
    fill(IMAGES)
    for port in (NEAR_PORT, FAR_PORT):
        file = Path(f"/etc/criagent/certs.d/127.0.0.1:{port}/hosts.toml")
        file.parent.mkdir(parents=True, exist_ok=True)
        host = f'[host."http://127.0.0.1:{port}"]\ncapabilities = ["pull", "resolve"]\n'
        file.write_text(host)
    far = (
        far_link(FAR_PORT, NEAR_PORT, RTT_MS, MBIT, RESETS) if RTT_MS else contextlib.nullcontext()
    )
    with registry(IMAGES), far, disk("overlay"):
        _measured(runtime, program)


if __name__ == "__main__":
    main(*sys.argv[1:])
