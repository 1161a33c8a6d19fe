# SPDX-License-Identifier: Apache-2.0
"""Images for `make bench-storage`, in a registry of their own: made of noise and of text."""

from __future__ import annotations

import contextlib
import random
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.image_builder import Layer, image, push
from tests.support.waiting import until

REGISTRY = "127.0.0.1:5001"
BIG, FILE, READ, APP = (f"bench.test/bench/{name}:1" for name in ("big", "file", "read", "app"))
MB = 1 << 20


def _files(layer: Layer, top: str, size: int, noise: random.Random) -> None:
    """Files like those of a distribution: many small ones, a few large; a third is noise."""
    sizes = (500, 2_000, 3_000, 8_000, 20_000, 60_000, 200_000)
    number = 0
    while size > 0:
        length = noise.choice(sizes)
        body = noise.randbytes(length // 3) + b"text \n" * (length // 9)
        layer.file(f"usr/{top}/{number // 200}/{number}", body[:length].ljust(length, b"."))
        size -= length
        number += 1


def _shell() -> Layer:
    layer = Layer()
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes())
    for name in ("sh", "sleep"):
        layer.symlink(f"bin/{name}", "busybox")
    layer.directory("tmp", 0o1777)
    return layer


def _large(size: int) -> bytes:
    """A layer with one file of `size` bytes, in which no two blocks of 4 KiB are the same."""
    block = random.Random(1).randbytes(4088)
    layer = Layer()
    layer.file("large", b"".join(n.to_bytes(8, "big") + block for n in range(size // 4096)))
    return layer.tar()


def fill(scale: float) -> None:
    """Push all of them. At scale 1 the big one has 1 GiB in ten layers."""
    noise = random.Random(15)
    push_one(BIG, [_tree(f"big{n}", int(scale * 1024 * MB) // 10, noise) for n in range(10)])
    push_one(APP, [_tree(f"app{n}", int(scale * 100 * MB) // 3, noise) for n in range(3)])
    push_one(FILE, [_large(int(scale * 1024) * MB)])
    push_one(READ, [_large(int(scale * 500) * MB)])


def _tree(top: str, size: int, noise: random.Random) -> bytes:
    layer = Layer()
    _files(layer, top, size, noise)
    return layer.tar()


def push_one(name: str, layers: list[bytes]) -> None:
    """With a shell below the layers, and a small layer above them."""
    last = Layer()
    last.file("etc/top", b"top")
    made = image([_shell().tar(), *layers, last.tar()], {}, compression="mixed")
    push(REGISTRY, [(made, "amd64")], name.partition("/")[2])


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[None]:
    """Serve them from `directory`, by the name bench.test, for the block."""
    config = directory / "registry.yml"
    text = Path("/src/tests/nodes/chroot/config/registry.yml").read_text()
    text = text.replace("/opt/registry", str(directory)).replace("127.0.0.1:5000", REGISTRY)
    config.write_text(text)
    hosts = Path("/etc/criagent/certs.d/bench.test/hosts.toml")
    hosts.parent.mkdir(parents=True, exist_ok=True)
    hosts.write_text(f'[host."http://{REGISTRY}"]\ncapabilities = ["pull", "resolve"]\n')
    with subprocess.Popen(
        ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until(_answers, "the registry to answer")
        try:
            yield
        finally:
            process.kill()


def _answers() -> bool:
    try:
        with urllib.request.urlopen(f"http://{REGISTRY}/v2/"):
            return True
    except urllib.error.URLError:
        return False
