# SPDX-License-Identifier: Apache-2.0
"""Archives of strangers: junk, hostile headers and bad entries, on small disks too."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.image_archives import archive, command, packed, small_layer, succeed
from tests.support.pods import Pods

pytestmark = pytest.mark.root

ROOT = Path("/var/lib/criagent")
SMALL = Path("/mnt/archives")
TAG = "registry.test/archives:1"
MIB = 1 << 20


@pytest.fixture
def clean(cri: Cri) -> Iterator[Cri]:
    """Whatever comes in under TAG goes away; nothing else is left."""
    yield cri
    cri.remove_image(TAG)
    succeed("prune")
    assert incoming() == []


@pytest.fixture
def small_root(cri: Cri) -> Iterator[Cri]:
    """An agent whose root directory is a tmpfs of 200 MiB, of which 10 MiB stay free."""
    agent.stop()
    SMALL.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "small", SMALL], check=True)
    client = agent.start(f'[storage]\nroot = "{SMALL}/root"\n')
    yield client
    client.close()
    agent.stop()
    subprocess.run(["umount", SMALL], check=True)
    agent.start().close()


def incoming(root: Path = ROOT) -> list[str]:
    return os.listdir(root / "incoming")


def free() -> int:
    facts = os.statvfs(SMALL)
    return facts.f_bavail * facts.f_frsize


def images(cri: Cri) -> list[str]:
    return [tag for image in cri.images() for tag in image.repo_tags]


def peak_mib(*, reset: bool = False) -> int:
    """Highest resident memory of the agent since the last reset (man 5 proc, clear_refs)."""
    process = Path("/proc") / Path("/run/criagent.pid").read_text()
    if reset:
        (process / "clear_refs").write_text("5")
    status = (process / "status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) >> 10


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_an_endless_stream_that_is_no_archive_ends_at_once(clean: Cri, device: str) -> None:
    done = command("import", device)
    assert done.returncode == 1
    assert b"not an image archive" in done.stderr
    assert incoming() == []


def test_an_empty_file_is_no_archive(clean: Cri) -> None:
    done = command("import", "/dev/null")
    assert (done.returncode, b"it is empty" in done.stderr) == (1, True)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_half_a_gigabyte_is_not_held(clean: Cri, tmp_path: Path, kind: bytes) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 512 * MIB
    file = tmp_path / "hostile.tar.gz"
    with gzip.open(file, "wb", compresslevel=1) as packed_file:
        packed_file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(512):
            packed_file.write(bytes(MIB))
    before = peak_mib(reset=True)
    done = command("import", str(file))
    assert done.returncode == 1
    assert b"an extended header is larger" in done.stderr
    assert peak_mib() - before < 64


def test_one_bad_entry_costs_itself_only(clean: Cri, pods: Pods) -> None:
    missing = {"digest": "sha256:" + "0" * 64, "size": 1}
    data = archive([small_layer(b"beside a bad one")], TAG, missing, {"digest": 5})
    done = command("import", "-", "--output", "json", data=data)
    assert done.returncode == 0, done.stderr.decode()
    assert [image["tags"] for image in json.loads(done.stdout)] == [[TAG]]
    lines = done.stderr.decode().splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "skipped sha256",
        "skipped entry 1 of index.json",
    ]
    assert "image_import_skipped" in agent.LOG.read_text()

    def change(config: api.ContainerConfig) -> None:
        config.image.image = TAG

    container_id = pods.running("/usr/bin/sleep", "1000", change=change)
    assert clean.exec(container_id, "/usr/bin/cat", "/content").stdout == b"beside a bad one"


def test_an_image_that_cannot_be_unpacked_costs_itself_only(clean: Cri) -> None:
    """Its blobs are all there, but the layer is not what the configuration says."""
    good = small_layer(b"unpacks")
    bad = json.dumps({"rootfs": {"diff_ids": ["sha256:" + "1" * 64]}}).encode()
    members = {"good.tar": good, "bad.json": bad}
    with tarfile.open(fileobj=io.BytesIO(archive([good], TAG))) as tar:
        for member in tar:
            file = tar.extractfile(member)
            content = file.read() if file else b""
            if content.startswith(b"{") and b'"diff_ids"' in content:
                members["good.json"] = content
    listed = [
        {"Config": "bad.json", "RepoTags": ["registry.test/bad:1"], "Layers": ["good.tar"]},
        {"Config": "good.json", "RepoTags": [TAG], "Layers": ["good.tar"]},
    ]
    members["manifest.json"] = json.dumps(listed).encode()
    done = command("import", "-", data=packed(members))
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == [TAG]
    assert "skipped registry.test/bad:1: layer" in done.stderr.decode()
    assert images(clean).count("registry.test/bad:1") == 0


def test_lower_case_keys_of_a_configuration_run(clean: Cri, pods: Pods) -> None:
    """As nixery.dev writes them: `cmd` and `env`."""
    layer = small_layer(b"nix")
    command_line = ["/usr/bin/sleep", "1000"]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"cmd": command_line, "env": ["A=nix"]},
            "rootfs": {"diff_ids": [_digest(layer)]},
        }
    )
    listed = [{"config": "c", "repotags": [TAG], "layers": ["l"]}]
    members = {"c": config.encode(), "l": layer, "manifest.json": json.dumps(listed).encode()}
    succeed("import", "-", data=packed(members))

    def change(spec: api.ContainerConfig) -> None:
        spec.image.image = TAG
        spec.ClearField("command")
        spec.ClearField("args")

    container_id = pods.running(change=change)
    environment = clean.exec(container_id, "/usr/bin/cat", "/proc/1/environ").stdout
    assert b"A=nix" in environment.split(b"\0")


def _digest(content: bytes) -> str:

    return "sha256:" + hashlib.sha256(content).hexdigest()


LARGE: dict[str, Callable[[], bytes]] = {
    "a stream": lambda: packed({"manifest.json": b"[]", "x": os.urandom(195 * MIB)}),
    "what it decompresses to": lambda: gzip.compress(packed({"x": bytes(400 * MIB)}), 1),
    "a layer": lambda: packed(
        {
            "c": json.dumps({"rootfs": {"diff_ids": ["sha256:" + "0" * 64]}}).encode(),
            "l": bytes(120 * MIB),
            "manifest.json": json.dumps([{"Config": "c", "Layers": ["l"]}]).encode(),
        }
    ),
}


@pytest.mark.parametrize("what", LARGE)
def test_an_archive_never_takes_the_reserve_of_the_disk(small_root: Cri, what: str) -> None:
    before = free()
    done = command("import", "-", data=LARGE[what]())
    assert done.returncode == 1
    assert b"stay reserved for the node" in done.stderr, done.stderr
    assert free() > before - MIB
    assert incoming(SMALL / "root") == []
    assert images(small_root) == []
