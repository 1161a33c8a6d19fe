# SPDX-License-Identifier: Apache-2.0
"""Images for `tests.bench.pulls`, each in gzip and in zstd: made once, kept by a registry."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from backports import zstd

from tests.bench.storage_images import MB, REGISTRY, registry
from tests.support.image_builder import Layer, packed_image, push

KINDS = ("layers", "small", "file")
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda tar: gzip.compress(tar, 6, mtime=0),
    "zstd": lambda tar: zstd.compress(tar, 3),
}
# Sizes of files as in a distribution: most are small, a few hold most of the bytes.
_SIZES = (500, 2_000, 3_000, 8_000, 20_000, 60_000, 100_000)
_TYPE = "application/vnd.oci.image.layer.v1.tar"


def name(kind: str, codec: str) -> str:
    """The repository and tag of an image."""
    return f"pulls/{kind}:{codec}"


def fill(directory: Path) -> None:
    """Make the images in the registry's directory unless they are there.

    `layers`: 1 GiB in ten layers. `small`: one layer of 100,000 files of up to 4 KB in 1,000
    directories. `file`: one layer of one file of 512 MiB.
    """
    done = directory / "complete"
    if done.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    noise = random.Random(18)
    with registry(directory):
        _publish("layers", (_tree(f"tree{n}", 1024 * MB // 10, noise) for n in range(10)))
        _publish("small", iter([_small(noise)]))
        _publish("file", iter([_file(512 * MB, noise)]))
    done.touch()


def _publish(kind: str, tars: Iterator[bytes]) -> None:
    layers: dict[str, list[tuple[bytes, str, bytes]]] = {codec: [] for codec in CODECS}
    with ThreadPoolExecutor(len(CODECS)) as threads:
        for tar in tars:
            packed = [(codec, threads.submit(pack, tar)) for codec, pack in CODECS.items()]
            for codec, blob in packed:
                layers[codec].append((blob.result(), f"{_TYPE}+{codec}", tar))
    for codec, made in layers.items():
        push(REGISTRY, [(packed_image(made, {}), "amd64")], name(kind, codec))


def _body(size: int, noise: random.Random) -> bytes:
    """Content that compresses to about two fifths."""
    return (noise.randbytes(size // 3) + b"some text \n" * (size // 16)).ljust(size, b".")


def _tree(top: str, size: int, noise: random.Random) -> bytes:
    layer = Layer()
    number = 0
    while size > 0:
        length = noise.choice(_SIZES)
        layer.file(f"usr/{top}/{number // 50}/{number}", _body(length, noise), 0o644)
        size -= length
        number += 1
    return layer.tar()


def _small(noise: random.Random) -> bytes:
    layer = Layer()
    for number in range(100_000):
        layer.file(f"srv/{number // 100}/{number}", _body(noise.randrange(4096), noise), 0o644)
    return layer.tar()


def _file(size: int, noise: random.Random) -> bytes:
    layer = Layer()
    layer.file("large", b"".join(_body(4096, noise) for _ in range(size // 4096)), 0o644)
    return layer.tar()
