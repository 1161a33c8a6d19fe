# SPDX-License-Identifier: Apache-2.0
"""A disk that answers EIO for some writes and then heals: what was answered is on it, nothing lies.

After a failed write the kernel holds the page as if it were written (fsync(2), "EIO"), so a second
fsync of the same file succeeds although its content is lost. Each test mounts the disk again to see
what it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from criagent.base.errors import UnavailableError
from criagent.kernel.write_back import WriteBack
from criagent.model.image import Layer
from tests.fire.verbs import Code, outcome
from tests.power.life import LOGS, content
from tests.power.node import MKFS_EXT4, ROOT, configuration, mounted, recorded_disk, run, serving
from tests.storage.ground import Storage, layers_of
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api, container, pod
from tests.support.unpack_place import member, tar
from tests.support.waiting import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("no_agent"),
]

_REGISTRY = "http://127.0.0.1:5000/v2/"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The backing file of an ext4 disk that can fail."""
    with recorded_disk(tmp_path / "fuse", tmp_path / "journal") as path:
        run(*MKFS_EXT4, path)
        yield path


@contextlib.contextmanager
def failing(disk: Path, what: bytes) -> Iterator[None]:
    """The disk answers EIO to writes that contain `what`."""
    fault = disk.with_name("fault")
    fault.write_bytes(what)
    try:
        yield
    finally:
        fault.write_bytes(b"none")


def layer_blob(image: str) -> bytes:
    """The compressed bytes of an image's largest layer."""
    name, _, tag = image.removeprefix("registry.k8s.io/").partition(":")
    request = urllib.request.Request(f"{_REGISTRY}{name}/manifests/{tag}")
    request.add_header("Accept", _MANIFEST)
    with urllib.request.urlopen(request, timeout=10) as answer:
        layers = json.load(answer)["layers"]
    digest = max(layers, key=lambda layer: int(layer["size"]))["digest"]
    with urllib.request.urlopen(f"{_REGISTRY}{name}/blobs/{digest}", timeout=10) as answer:
        return bytes(answer.read())


def middle(data: bytes) -> bytes:
    """Some bytes that lie in one page of `data` and nowhere else."""
    at = len(data) // 8192 * 4096 + 64
    piece = data[at : at + 64]
    while piece.strip() != piece or data.count(piece) != 1:
        at += 1
        piece = data[at : at + 64]
    return piece


def fsck() -> str:
    command = [sys.executable, "-m", "criagent", "image", "fsck"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def pull_fails(cri: Cri) -> None:
    found = outcome(lambda: cri.pull(BUSYBOX))
    assert found.code is Code.UNAVAILABLE, found
    assert "Input/output error" in found.text
    assert cri.images() == []


def pulled_again(cri: Cri) -> str:
    """The content after a repeated pull. syncfs(2) reports each error of the file system once: that
    of the first attempt may meet the second.
    """
    found = outcome(lambda: cri.pull(BUSYBOX))
    if found.code is not Code.OK:
        assert found.code is Code.UNAVAILABLE, found
        cri.pull(BUSYBOX)
    return content(cri, BUSYBOX)


def content_on_disk(disk: Path, scratch: Path) -> str:
    """Of the pulled image, read from the disk; fsck finds nothing."""
    with mounted(disk, 2, scratch), serving("overlay") as cri:
        assert fsck() == ""
        return content(cri, BUSYBOX)


def test_a_download_that_was_not_written_is_not_taken_for_a_blob(
    disk: Path, tmp_path: Path
) -> None:
    with mounted(disk, 1, tmp_path), serving("overlay") as cri:
        with failing(disk, middle(layer_blob(BUSYBOX))):
            pull_fails(cri)
        expected = pulled_again(cri)
    assert content_on_disk(disk, tmp_path) == expected


def test_a_layer_that_was_not_written_is_unpacked_again(disk: Path, tmp_path: Path) -> None:
    with mounted(disk, 1, tmp_path), serving("overlay") as cri:
        with failing(disk, middle(Path("/bin/busybox").read_bytes())):
            pull_fails(cri)
        expected = pulled_again(cri)
    assert content_on_disk(disk, tmp_path) == expected


@pytest.fixture
async def storage(disk: Path, tmp_path: Path) -> AsyncIterator[Storage]:
    """The layers of an agent on that disk."""
    with mounted(disk, 1, tmp_path):
        opened = await Storage(ROOT, "overlay", tmp_path).open()
        try:
            yield opened
        finally:
            await opened.close()


LOST = os.urandom(1 << 16)
LOWER, UPPER = tar(member("lost", LOST)), tar(member("upper", b"upper"))


async def lower_is_written() -> None:
    """In the page cache; its pages are not on the disk."""

    def complete() -> bool:
        found = list(ROOT.glob("snapshots/*/fs/lost"))
        return [file.stat().st_size for file in found] == [len(LOST)]

    await asyncio.to_thread(until, complete, "the lower layer")


async def whole_again(storage: Storage) -> None:
    """Nothing is committed, and another pull succeeds."""
    assert not [layer for layer in storage.rows.all() if layer.committed]
    image = await storage.image(LOWER, UPPER)
    async with storage.volume(image) as root:
        assert (root / "lost").read_bytes() == LOST


async def test_a_layer_is_not_committed_when_another_sync_heard_of_its_loss(
    disk: Path, storage: Storage
) -> None:
    """syncfs(2) does not report an error to a descriptor that was opened after it was reported."""

    async def arriving(layer: Layer) -> None:
        if layer.diff_id == layers_of(UPPER)[0].diff_id:
            await lower_is_written()
            with failing(disk, middle(LOST)), pytest.raises(OSError, match="Input/output error"):
                other.sync()

    with contextlib.closing(WriteBack(ROOT)) as other:
        other.open()
        with pytest.raises(OSError, match="Input/output error"):
            await storage.image(LOWER, UPPER, arriving=arriving)
        await whole_again(storage)


async def test_a_pull_that_shares_a_layer_with_one_that_could_not_sync_it(
    disk: Path, storage: Storage
) -> None:
    async def arriving(layer: Layer) -> None:
        if layer.diff_id == layers_of(UPPER)[0].diff_id:
            with failing(disk, middle(LOST)), pytest.raises(OSError, match="Input/output error"):
                await storage.image(LOWER)

    with pytest.raises(UnavailableError, match="another pull could not sync"):
        await storage.image(LOWER, UPPER, arriving=arriving)
    await whole_again(storage)


async def test_a_layer_whose_early_sync_failed_is_committed_by_no_pull(
    disk: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is synced while the rest of the image arrives, and another pull shares it meanwhile."""
    large = tar(member("lost", LOST), member("large", os.urandom(40 << 20)))
    upper = layers_of(UPPER)[0].diff_id
    sync, failed = storage.snapshots.sync, asyncio.Event()

    async def observed(written: WriteBack) -> None:
        try:
            await sync(written)
        except OSError:
            failed.set()
            raise

    monkeypatch.setattr(storage.snapshots, "sync", observed)
    with contextlib.ExitStack() as stack:

        async def arriving(layer: Layer) -> None:
            if layer.diff_id != upper:
                stack.enter_context(failing(disk, middle(LOST)))
                return
            await failed.wait()
            stack.close()
            with pytest.raises(UnavailableError, match="another pull could not sync"):
                await storage.image(large)

        with pytest.raises(OSError, match="Input/output error"):
            await storage.image(large, UPPER, arriving=arriving)
    assert not [layer for layer in storage.rows.all() if layer.committed]


def test_a_row_that_was_not_written_is_not_answered(disk: Path, tmp_path: Path) -> None:
    config = pod("unwritten-row", log_directory=LOGS)
    with mounted(disk, 1, tmp_path), serving("overlay") as cri:
        with failing(disk, b"unwritten-row"):
            found = outcome(lambda: cri.run(config))
            assert found.code is Code.UNAVAILABLE, found
            assert "state database cannot be written" in found.text
            assert cri.pods() == []
        sandbox = cri.run(config)
        cri.stop_pod(sandbox)
        agent.kill()
        agent.start(configuration("overlay")).close()
        assert [one.id for one in cri.pods()] == [sandbox]


def test_an_exit_code_that_was_not_written_is_not_lost(disk: Path, tmp_path: Path) -> None:
    """A container ends while its row cannot be written; the code is the real one afterwards."""
    config = pod("exits", log_directory=LOGS)
    with mounted(disk, 1, tmp_path), serving("overlay") as cri:
        cri.pull(BUSYBOX)
        sandbox = cri.run(config)
        work = container(
            "main", ["sh", "-c", "while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 9"]
        )
        made = cri.create(sandbox, work, config)
        cri.start(made)
        with failing(disk, made.encode()):
            cri.exec(made, "touch", "/tmp/go")
            found = outcome(lambda: cri.stop(made, 20))
            assert found.code in {Code.OK, Code.UNAVAILABLE}, found
        cri.stop(made, 20)
        status = cri.status(made)
        assert (status.state, status.exit_code) == (api.CONTAINER_EXITED, 9)
        agent.kill()
        agent.start(configuration("overlay")).close()
        assert cri.status(made).exit_code == 9
