# SPDX-License-Identifier: Apache-2.0
"""What a lazy pull could gain at most: `tests/node/up python3 -m tests.bench.lazy_pull`.

A Python application with a real root (this node's, in five layers of eStargz) is pulled whole by
the agent and started. Beside it a client fetches only what any lazy pull must fetch before that
program can run: documents, footers and TOCs, and the chunks of the files that the start reads,
which the page cache shows. It mounts, verifies and writes nothing, so a real lazy pull is slower.
Both from a registry on this machine, and over a link of LAZY_RTT_MS=50 and LAZY_MBIT=100, as
medians of LAZY_ROUNDS=3. Prints a table and writes build/bench-lazy-pull.json.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench import estargz
from tests.bench.storage_disks import ROOT, disk
from tests.bench.storage_images import REGISTRY, registry
from tests.support import agent
from tests.support.cri_client import Cri, container, pod
from tests.support.far_link import far_link
from tests.support.image_builder import packed_image, push
from tests.support.page_cache import evict, resident
from tests.support.waiting import until

RTT_MS = float(os.environ.get("LAZY_RTT_MS", "50"))
MBIT = float(os.environ.get("LAZY_MBIT", "100"))
ROUNDS = int(os.environ.get("LAZY_ROUNDS", "3"))
FAR_PORT = 5002
MB = 1 << 20
LIMIT_S = 600.0
SAMPLE = 200  # files of which reading one later is measured
LINKS = ("bin", "lib", "lib64", "sbin")
LAYERS = (
    ("usr/bin", "usr/sbin", "etc", "var/lib/dpkg", *LINKS),
    ("usr/lib/x86_64-linux-gnu", "usr/lib64"),
    ("usr/lib/python3", "usr/lib/python3.13"),
    ("opt/venv",),
    ("usr/share",),
)
PROGRAM = "import aiohttp.web, cryptography.x509, grpc, sqlite3, ssl, yaml; print('up', flush=True)"
COMMAND = ["/opt/venv/bin/python3", "-c", f"{PROGRAM}; import time; time.sleep(100000)"]
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
Chunk = tuple[int, int]  # offset and length in the blob


class Remote:
    """A repository over one connection."""

    def __init__(self, port: int, name: str) -> None:
        self._at = http.client.HTTPConnection("127.0.0.1", port)
        self._name = name
        self.received = 0

    def get(self, path: str, offset: int = 0, length: int = 0) -> bytes:
        """A document or blob of it, or `length` bytes from `offset` on."""
        headers = {"Accept": MANIFEST}
        if length:
            headers["Range"] = f"bytes={offset}-{offset + length - 1}"
        self._at.request("GET", f"/v2/lazy/{self._name}/{path}", headers=headers)
        answer = self._at.getresponse()
        assert answer.status == (206 if length else 200), (path, answer.status)
        content = answer.read()
        self.received += len(content)
        return content


class LazyLayer:
    """A layer of which only its TOC is fetched at first."""

    def __init__(self, port: int, name: str, descriptor: dict[str, Any]) -> None:
        self.remote = Remote(port, name)
        self.path = f"blobs/{descriptor['digest']}"
        size = descriptor["size"]
        footer = self.remote.get(self.path, size - estargz.FOOTER, estargz.FOOTER)
        end = estargz.toc_offset(footer)
        toc = self.remote.get(self.path, end, size - estargz.FOOTER - end)
        self.toc_bytes = len(toc)
        entries = [one for one in estargz.read_toc(toc) if "offset" in one]
        stops = [*(one["offset"] for one in entries[1:]), end]
        self.chunks: dict[str, list[Chunk]] = {}
        for one, stop in zip(entries, stops, strict=True):
            place = (one["offset"], stop - one["offset"])  # with the next header, which is small
            if one.get("chunkSize"):
                self.chunks.setdefault(one["name"], []).append(place)
        self.prefetch = self.chunks[estargz.LANDMARK][0][0]

    def fetch(self, offset: int, length: int) -> None:
        """Fetch and decompress."""
        estargz.unpacked(self.remote.get(self.path, offset, length))


def lazy(port: int, name: str, first: Callable[[LazyLayer], None]) -> list[LazyLayer]:
    """The layers of an image, side by side, with `first` done to each."""
    remote = Remote(port, name)
    manifest = json.loads(remote.get("manifests/1"))
    remote.get(f"blobs/{manifest['config']['digest']}")

    def layer(descriptor: dict[str, Any]) -> LazyLayer:
        one = LazyLayer(port, name, descriptor)
        first(one)
        return one

    with ThreadPoolExecutor(len(LAYERS)) as pool:
        return list(pool.map(layer, manifest["layers"]))


def prefetched(layer: LazyLayer) -> None:
    """What the tool that made the image put before the landmark, in one request."""
    if layer.prefetch:
        layer.fetch(0, layer.prefetch)


def on_demand(layers: list[LazyLayer], files: Sequence[str]) -> None:
    """Each file when the program opens it: one after the other, a request for each chunk."""
    for file in files:
        for layer in layers:
            for place in layer.chunks.get(file, []):
                layer.fetch(*place)


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median(call: Callable[[], float]) -> float:
    return round(statistics.median(call() for _ in range(ROUNDS)), 2)


class Parts:
    """The image's layers, compressed once for both orders of their files."""

    def __init__(self) -> None:
        self._layers = [
            estargz.parts_of([path for top in tops if (path := Path("/", top)).exists()])
            for tops in LAYERS
        ]

    def publish(self, name: str, first: AbstractSet[str] = frozenset()) -> dict[str, float]:
        """Push the image with the files of `first` in front; its sizes."""
        made = [estargz.layer(parts, first) for parts in self._layers]
        packed = [(bytes(one.blob), LAYER, bytes(one.tar)) for one in made]
        push(REGISTRY, [(packed_image(packed, {}), "amd64")], f"lazy/{name}:1")
        return {
            "image, MB compressed": round(sum(len(one.blob) for one in made) / MB, 1),
            "image, MB unpacked": round(sum(len(one.tar) for one in made) / MB, 1),
        }


class Whole:
    """The image as the agent pulls it."""

    def __init__(self, cri: Cri, image: str) -> None:
        self._cri = cri
        self.image = image
        self._count = 0

    def pull(self) -> float:
        """Seconds of a pull; the image is removed before and stays."""
        self._cri.remove_image(self.image)
        until(lambda: not any(_large(ROOT / "blobs")), "the blobs to be gone", 60)
        return timed(lambda: self._cri.pull(self.image, LIMIT_S))

    def start(self) -> float:
        """Seconds from RunPodSandbox to the program's line."""
        self._count += 1
        name = f"lazy-{self._count}"
        logs = Path("/tmp", name)
        log = logs / "main.log"
        log.unlink(missing_ok=True)
        begin = time.perf_counter()
        config = pod(name, log_directory=str(logs))
        sandbox = self._cri.run(config)
        made = self._cri.create(sandbox, container("main", COMMAND, self.image), config)
        self._cri.start(made)
        until(lambda: " stdout F up\n" in log.read_text(), "the program to run", 120)
        took = time.perf_counter() - begin
        self.read = sorted(_read(Path(f"/run/criagent/containers/{made}/rootfs")))
        self._cri.stop(made)
        self._cri.stop_pod(sandbox)
        self._cri.remove_pod(sandbox)
        return took

    def files_of_a_start(self) -> list[str]:
        """Regular files that a start has pages of, when none had any before it."""
        config = pod("lazy-evict", log_directory="/tmp")
        sandbox = self._cri.run(config)
        made = self._cri.create(sandbox, container("main", COMMAND, self.image), config)
        os.sync()
        for _, file in _files(Path(f"/run/criagent/containers/{made}/rootfs")):
            evict(file)
        self._cri.remove_pod(sandbox)
        self.start()
        return self.read


def _large(directory: Path) -> Iterator[Path]:
    return (file for file in directory.rglob("*") if file.is_file() and file.stat().st_size > MB)


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    for top, _, names in os.walk(root):
        for name in names:
            file = Path(top, name)
            if file.is_file() and not file.is_symlink() and file.stat().st_size:
                yield str(file.relative_to(root)), file


def _read(root: Path) -> Iterator[str]:
    return (name for name, file in _files(root) if resident(file))


def over(cri: Cri, link: str, port: int, files: Sequence[str]) -> dict[str, float]:
    """The figures of one link, in seconds."""
    whole = Whole(cri, f"{link}.test/lazy/ordered:1")
    cri.pull(whole.image, LIMIT_S)
    layers = lazy(port, "ordered", prefetched)
    known = {name: places for one in layers for name, places in one.chunks.items()}
    rest = sorted(set(known) - set(files) - {estargz.LANDMARK})
    sample = random.Random(1).sample(rest, SAMPLE)
    sampled = sum(len(known[name]) for name in sample)
    chunks = sum(len(known[name]) for name in rest)
    each = timed(lambda: on_demand(layers, sample)) / sampled
    return {
        "load of the machine": round(os.getloadavg()[0], 1),
        "pulled whole by the agent": median(whole.pull),
        "start of its program": median(whole.start),
        "lazy: TOCs alone": median(lambda: timed(lambda: lazy(port, "ordered", _nothing))),
        "lazy: TOCs, and what a start reads in one request for each layer": median(
            lambda: timed(lambda: lazy(port, "ordered", prefetched))
        ),
        "lazy: TOCs, and each file when it is opened": median(
            lambda: timed(lambda: on_demand(lazy(port, "ordered", _nothing), files))
        ),
        f"one chunk later (mean of {sampled}), ms": round(each * 1000, 1),
        f"all {chunks} other chunks later, one after the other (from that)": round(each * chunks),
        "the TOCs, MB": round(sum(one.toc_bytes for one in layers) / MB, 1),
        "what a start reads, MB compressed": round(sum(one.prefetch for one in layers) / MB, 1),
    }


def _nothing(_: LazyLayer) -> None:
    pass


def hosts(name: str, port: int) -> None:
    file = Path(f"/etc/criagent/certs.d/{name}/hosts.toml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'[host."http://127.0.0.1:{port}"]\ncapabilities = ["pull", "resolve"]\n')


def measure() -> None:
    """Both links, with an agent and a registry of their own."""
    agent.stop()
    images = Path("/var/lib/criagent/bench-registry")
    images.mkdir()
    near_port = int(REGISTRY.rpartition(":")[2])
    hosts("near.test", near_port)
    hosts("far.test", FAR_PORT)
    with registry(images), far_link(FAR_PORT, near_port, RTT_MS, MBIT), disk("overlay"):
        cri = agent.start(f'[storage]\nroot = "{ROOT}"\ndriver = "overlay"\n')
        try:
            parts = Parts()
            parts.publish("plain")
            plain = Whole(cri, "near.test/lazy/plain:1")
            cri.pull(plain.image, LIMIT_S)
            files = plain.files_of_a_start()
            cri.remove_image(plain.image)
            figures: dict[str, Any] = parts.publish("ordered", frozenset(files))
            figures["files that a start reads"] = len(files)
            figures["registry on this machine"] = over(cri, "near", near_port, files)
            figures[f"{RTT_MS:g} ms, {MBIT:g} Mbit/s"] = over(cri, "far", FAR_PORT, files)
        finally:
            agent.stop()
    text = json.dumps(figures, indent=2)
    target = Path("/src/build/bench-lazy-pull.json")
    target.parent.mkdir(exist_ok=True)
    target.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    measure()
