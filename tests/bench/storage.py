# SPDX-License-Identifier: Apache-2.0
"""Figures of the storage drivers on comparable disks: `make bench-storage`, in a test node.

Each driver has an agent of its own, with a disk of `storage_disks`. BENCH_SCALE makes images, files
and counts smaller (0.1 in the VM, which has devmapper and zfs: vm/full/test_bench_storage.py),
STORAGE_DRIVERS selects drivers, BENCH_ONLY methods of Bench. Prints a table and writes
build/bench-storage.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from criagent.config.storage_drivers import KNOWN
from tests.bench.storage_disks import ROOT, Disk, arc_bytes, disk
from tests.bench.storage_images import APP, BIG, FILE, MB, READ, fill, registry
from tests.storage.grounds import absent
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, container, pod
from tests.support.page_cache import held
from tests.support.waiting import until

SCALE = float(os.environ.get("BENCH_SCALE", "1"))
PODS = max(5, int(20 * SCALE))
DENSE = max(5, int(50 * SCALE))
READERS = max(5, int(20 * SCALE))
READS = int(1_000_000 * SCALE)
AGED = int(256 * SCALE) * MB
SLEEP = ["/bin/sleep", "100000"]
LIMIT_S = 600.0

Row = dict[str, float]


def sized(megabytes: int) -> str:
    """That size at this scale."""
    return "1 GB" if megabytes * SCALE == 1024 else f"{megabytes * SCALE:.0f} MB"


class Bench:
    """One driver and the figures of it."""

    def __init__(self, cri: Cri, driver: str, disk: Disk) -> None:
        self.cri = cri
        self.driver = driver
        self.disk = disk
        self.row: Row = {}
        self._count = 0

    def note(self, name: str, value: float) -> None:
        self.row[name] = round(value, 2)
        print(f"{self.driver:16}{name:52}{value:12.2f}", flush=True)

    def container(self, image: str, sandbox: str, config: object) -> str:
        self._count += 1
        wanted = container(f"c{self._count}", SLEEP, image)
        made = self.cri.create(sandbox, wanted, config, timeout=LIMIT_S)  # type: ignore[arg-type]
        self.cri.start(made)
        return made

    @contextlib.contextmanager
    def containers(self, image: str, count: int) -> Iterator[list[Path]]:
        """The roots of so many running containers of one pod."""
        self._count += 1
        config = pod(f"bench-{self._count}", log_directory="/tmp/bench-logs")
        sandbox = self.cri.run(config)
        made = [self.container(image, sandbox, config) for _ in range(count)]
        yield [Path(f"/run/criagent/containers/{one}/rootfs") for one in made]
        self.cri.remove_pod(sandbox)

    # Measures, in order.

    def pods(self) -> None:
        self.cri.pull(BUSYBOX)
        ups, downs = [], []
        for number in range(PODS):
            config = pod(f"pod-{number}", log_directory="/tmp/bench-logs")
            start = time.perf_counter()
            sandbox = self.cri.run(config)
            made = self.cri.create(sandbox, container("main", ["sleep", "1000"]), config)
            self.cri.start(made)
            ups.append(time.perf_counter() - start)
            start = time.perf_counter()
            self.cri.stop(made)
            self.cri.remove(made)
            self.cri.stop_pod(sandbox)
            self.cri.remove_pod(sandbox)
            downs.append(time.perf_counter() - start)
        self.note("pod up, ms", statistics.median(ups) * 1000)
        self.note("pod down, ms", statistics.median(downs) * 1000)

    def unpack(self) -> None:
        before = self.disk.used()
        self.note(f"pull of a {sized(1024)} image, s", timed(lambda: self.cri.pull(BIG, LIMIT_S)))
        after = self.disk.used()
        blobs = sum(file.stat().st_blocks for file in (ROOT / "blobs").rglob("*")) * 512
        self.note("its layers on disk, MB", (after[0] - before[0] - blobs) / MB)
        if self.disk.inodes:
            self.note("its inodes", after[1] - before[1])

        def gone() -> None:
            self.cri.remove_image(BIG)
            until(lambda: self.disk.used()[0] < before[0] + 64 * MB, "the space to be free", 120)

        self.note("removal of the image until its space is free, s", timed(gone))

    def first_write(self) -> None:
        self.cri.pull(FILE, LIMIT_S)
        with self.containers(FILE, 1) as (root,):
            drop_caches()
            before = self.disk.used()[0]
            self.note(
                f"first write to a {sized(1024)} file, ms", timed(partial(write_4k, root)) * 1000
            )
            self.note("disk that it took, MB", (self.disk.used()[0] - before) / MB)
            self.note("second write, ms", timed(partial(write_4k, root)) * 1000)
        self.cri.remove_image(FILE)

    def density(self) -> None:
        self.cri.pull(APP, LIMIT_S)
        os.sync()
        before = self.disk.used()
        start = time.perf_counter()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.containers(APP, DENSE))
            self.note(
                f"start of {DENSE} containers of {sized(100)}, s", time.perf_counter() - start
            )
            after = self.disk.used()
            self.note(f"disk of {DENSE} containers, MB", (after[0] - before[0]) / MB)
            if self.disk.inodes:
                self.note(f"inodes of {DENSE} containers", after[1] - before[1])
            start = time.perf_counter()
        until(lambda: self.disk.used()[0] < before[0] + 16 * MB, "the space to be free", 300)
        self.note(f"removal of {DENSE} containers, s", time.perf_counter() - start)

    def small_reads(self) -> None:
        with self.containers(APP, 1) as (root,):
            files = [str(file) for file in sorted((root / "usr").rglob("*")) if file.is_file()]
            for file in files:
                read_small(file)
            start = time.perf_counter()
            done = 0
            while done < READS and time.perf_counter() - start < 40:
                read_small(files[done % len(files)])
                done += 1
            took = time.perf_counter() - start
        self.note("open, read and close of small files, µs each", took / done * 1e6)
        self.cri.remove_image(APP)

    def shared_reads(self) -> None:
        self.cri.pull(READ, LIMIT_S)
        with self.containers(READ, READERS) as roots:
            drop_caches()
            files = [root / "large" for root in roots]
            own = arc_bytes()
            self.note(f"{READERS} containers read {sized(500)}, s", timed(lambda: read_each(files)))
            if self.driver == "zfs":
                self.note("ARC of that, MB", (arc_bytes() - own) / MB)
            self.note("page cache of that, MB", held(files) / MB)
        self.cri.remove_image(READ)

    def ageing(self) -> None:
        with self.containers(BUSYBOX, 1) as (root,):
            file = root / "aged"
            with file.open("wb") as opened:
                for _ in range(AGED // MB):
                    opened.write(os.urandom(MB))
            fresh = sequential(file)
            rates = [rewrite(file, seed) for seed in range(5)]
            self.note("random rewrite of 4 KB, fresh, MB/s", rates[0])
            self.note("random rewrite of 4 KB, the fifth time, MB/s", rates[-1])
            self.note("sequential read, fresh, MB/s", fresh)
            self.note("sequential read after the rewrites, MB/s", sequential(file))

    def all(self) -> None:
        only = os.environ.get("BENCH_ONLY", "").split()
        for method in (
            self.pods,
            self.unpack,
            self.first_write,
            self.density,
            self.small_reads,
            self.shared_reads,
            self.ageing,
        ):
            if not only or method.__name__ in only:
                method()


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def write_4k(root: Path) -> None:
    fd = os.open(root / "large", os.O_RDWR)
    os.pwrite(fd, os.urandom(4096), os.fstat(fd).st_size // 2)
    os.fsync(fd)
    os.close(fd)


def read_small(file: str) -> None:
    fd = os.open(file, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)


def read_all(file: Path) -> None:
    with file.open("rb", buffering=0) as opened:
        while opened.read(4 * MB):
            pass


def read_each(files: Sequence[Path]) -> None:
    for file in files:
        read_all(file)


def rewrite(file: Path, seed: int) -> float:
    """MB/s of overwriting a sixteenth of the blocks in random order."""
    order = random.Random(seed)
    blocks = AGED // 4096
    chosen = order.sample(range(blocks), blocks // 16)
    body = os.urandom(4096)
    start = time.perf_counter()
    fd = os.open(file, os.O_WRONLY)
    for at, block in enumerate(chosen):
        os.pwrite(fd, body, block * 4096)
        if at % 64 == 63:
            os.fdatasync(fd)
    os.fsync(fd)
    os.close(fd)
    return len(chosen) * 4096 / MB / (time.perf_counter() - start)


def sequential(file: Path) -> float:
    drop_caches()
    return AGED / MB / timed(partial(read_all, file))


def table(rows: dict[str, Row]) -> None:
    """Print the figures, driver by driver."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    width = max(map(len, names))
    print(f"{'':{width}}" + "".join(f"{driver:>16}" for driver in rows))
    for name in names:
        cells = "".join(f"{row.get(name, float('nan')):16.2f}" for row in rows.values())
        print(f"{name:{width}}{cells}")


def measure(
    start: Callable[[str], Cri] = agent.start, stop: Callable[[], None] = agent.stop
) -> None:
    """Every driver that runs here, with agents that `start` starts with a configuration."""
    wanted = os.environ.get("STORAGE_DRIVERS", " ".join(KNOWN)).split()
    rows: dict[str, Row] = {}
    stop()
    images = Path("/var/lib/criagent/bench-registry")
    images.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, images)
        stack.enter_context(registry(images))
        fill(SCALE)
        for driver in wanted:
            if reason := absent(driver):
                print(f"not measured: {driver}: {reason}")
                continue
            with disk(driver) as own:
                storage = f'[storage]\nroot = "{ROOT}"\ndriver = "{driver}"\n'
                cri = start(
                    f"{storage}[storage.{driver}]\n{own.section}" if own.section else storage
                )
                bench = Bench(cri, driver, own)
                try:
                    bench.all()
                finally:
                    rows[driver] = bench.row
                    for sandbox in cri.pods():
                        cri.remove_pod(sandbox.id)
                    stop()
    table(rows)
    machine = {"machine": f"{platform.release()}, {os.cpu_count()} processors", "scale": SCALE}
    target = Path("/src/build/bench-storage.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({**machine, "drivers": rows}, indent=2) + "\n")
    print("as JSON: build/bench-storage.json")
    sys.stdout.flush()


if __name__ == "__main__":
    measure()
