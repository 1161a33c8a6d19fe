# SPDX-License-Identifier: Apache-2.0
"""Layers and blobs of a real node: what failed pulls leave, who waits for whom, damaged layers.

The registry is one of our own on loopback, which hangs, dribbles and refuses as it is told.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.e2e.test_images import MADE
from tests.support import agent, image_builder
from tests.support.chosen_driver import layers_are_trees
from tests.support.cri_client import Cri, api
from tests.support.image_archives import archive, command, succeed
from tests.support.images import usage
from tests.support.node_state import settled_state
from tests.support.pods import Pods
from tests.support.pulling import Registry, TarPit, digest, name, served, straight
from tests.support.waiting import until

pytestmark = pytest.mark.root

ROOT = Path("/var/lib/criagent")
CONFIG = {"config": {"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"]}}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with served() as one:
        yield one


@pytest.fixture(autouse=True)
def images_of_this_test(cri: Cri) -> Iterator[None]:
    """Those that it leaves go away."""
    before = {image.id for image in cri.images()}
    yield
    with contextlib.closing(Cri()) as client:
        for image in client.images():
            if image.id not in before:
                client.remove_image(image.id)


def layer(*names: str, size: int = 100, seed: int = 1) -> bytes:
    """A layer with files of these names."""
    made, chance = image_builder.Layer(), random.Random(seed)
    for one in names:
        made.file(one, chance.randbytes(size))
    return made.tar()


def base() -> bytes:
    made = image_builder.Layer()
    for program in ("sleep", "cat", "echo"):
        made.program(Path("/usr/bin") / program, f"bin/{program}")
    made.file("etc/made-here", b"base")
    return made.tar()


def disk() -> tuple[int, int]:
    """Bytes and files of blobs."""
    files = [path for path in (ROOT / "blobs").rglob("*") if path.is_file()]
    facts = [(path.stat(), "." in path.name) for path in files]
    return sum(s.st_blocks * 512 if part else s.st_size for s, part in facts), len(facts)


def directories() -> set[str]:
    """Layers that are there or wait for their deletion."""
    found = {path.name for path in (ROOT / "snapshots").iterdir() if path.name.isdigit()}
    return found | {f"trash/{path.name}" for path in (ROOT / "snapshots/trash").iterdir()}


def given_up(cri: Cri, registry: Registry, *contents: bytes) -> None:
    """A pull of these layers whose last one hangs; its caller leaves when the others are there."""
    registry.image(*contents, tags=("given-up",), config=CONFIG)
    registry.hook = pit = TarPit(contents[-1], sends=contents[-1][:100])
    request = api.PullImageRequest(image=api.ImageSpec(image=name(registry, "a/b:given-up")))
    call = cri.image.PullImage.future(request)
    files = [ROOT / "blobs/sha256" / digest(one).removeprefix("sha256:") for one in contents]
    until(lambda: all(path.exists() for path in files[:-1]), "the layers that arrive")
    until(pit.reached.is_set, "the layer that hangs")
    call.cancel()
    registry.hook = straight
    until(lambda: "cancelled" in agent.LOG.read_text().lower(), "the end of the pull")


@pytest.mark.parametrize("how", ["removal", "restart"])
def test_what_a_pull_left_is_counted_and_goes_by_itself(
    cri: Cri, registry: Registry, how: str
) -> None:
    registry.image(layer("other"), tags=("other",))
    cri.pull(name(registry, "a/b:other"))
    before, taken, trees = usage(cri), disk(), directories()
    given_up(cri, registry, layer("big", size=8 << 20), layer("hangs"))
    until(
        lambda: (
            (usage(cri)[0] - before[0], usage(cri)[1] - before[1])
            == (disk()[0] - taken[0], disk()[1] - taken[1])
        ),
        "the count of what is there",
    )
    assert usage(cri)[0] - before[0] > 8 << 20
    until(lambda: directories() == trees, "the end of the layer that was unpacked")
    assert "no problem found" in succeed("fsck").decode()
    match how:
        case "removal":
            cri.remove_image(name(registry, "a/b:other"))
            cri.pull(name(registry, "a/b:other"))
        case "restart":
            agent.stop()
            agent.start().close()
    with contextlib.closing(Cri()) as client:
        assert disk() == taken
        assert usage(client) == before
    assert "no problem found" in succeed("fsck").decode()


def test_the_next_try_goes_on_where_the_last_one_ended(cri: Cri, registry: Registry) -> None:
    big = layer("big", size=1 << 20)
    given_up(cri, registry, big, layer("hangs"))
    registry.asked.clear()
    cri.pull(name(registry, "a/b:given-up"))
    assert registry.blobs(big) == 0
    assert any(headers.get("Range") == "bytes=100-" for headers in registry.headers)


def test_failed_pulls_do_not_fill_the_disk(cri: Cri, registry: Registry) -> None:
    """An image that never unpacks, another one each time, as a pod in ImagePullBackOff has it."""
    taken, used = disk(), usage(cri)
    for number in range(4):
        good = layer("good", size=2 << 20, seed=number)
        registry.image(good, b"no tar at all" * 100, tags=(f"{number}",))
        with pytest.raises(grpc.RpcError):
            cri.pull(name(registry, f"a/b:{number}"))
    assert usage(cri)[0] - used[0] == disk()[0] - taken[0] > 0
    cri.remove_image(name(registry, "a/b:0"))  # which is not there
    assert (disk(), usage(cri)) == (taken, used)


@pytest.mark.parametrize("present", [True, False])
def test_a_tarpit_delays_no_other_pull(cri: Cri, registry: Registry, present: bool) -> None:
    shared, hangs = base(), layer("hangs")
    if present:
        registry.image(shared, tags=("popular",))
        cri.pull(name(registry, "a/b:popular"))
    with served() as evil:
        evil.image(shared, hangs)
        evil.hook = pit = TarPit(hangs, sends=hangs[:1])
        request = api.PullImageRequest(image=api.ImageSpec(image=name(evil)))
        hostile = cri.image.PullImage.future(request)
        until(pit.reached.is_set, "the tarpit")
        registry.image(shared, layer("app"), tags=("app",))
        cri.pull(name(registry, "a/b:app"))
        cri.remove_image(name(registry, "a/b:app"))  # a collection does not wait either
        cri.pull(name(registry, "a/b:app"))
        assert not hostile.done()
        hostile.cancel()


def test_a_blob_that_a_tarpit_serves_comes_from_elsewhere(cri: Cri, registry: Registry) -> None:
    wanted = base()
    with served() as evil:
        for server in (evil, registry):
            server.image(wanted)
        evil.hook = pit = TarPit(wanted, sends=wanted[:1])
        request = api.PullImageRequest(image=api.ImageSpec(image=name(evil)))
        hostile = cri.image.PullImage.future(request)
        until(pit.reached.is_set, "the tarpit")
        cri.pull(name(registry))
        assert hostile.result(timeout=20).image_ref  # what is here need not come from there
    assert not list((ROOT / "blobs").rglob("*.part"))


def running(pods: Pods, registry: Registry, *contents: bytes) -> str:
    registry.image(*contents, config=CONFIG)
    pods.cri.pull(name(registry))

    def change(config: api.ContainerConfig) -> None:
        config.image.image = name(registry)

    return pods.running("/bin/sleep", "1000", change=change)


def tree_of(file: str) -> Path:
    (found,) = (ROOT / "snapshots").glob(f"[0-9]*/fs/{file}")
    return found.parents[len(Path(file).parts) - 1]


@layers_are_trees
@pytest.mark.parametrize("in_use", [False, True])
def test_a_layer_that_lost_its_programs_is_found_and_made_anew(
    cri: Cri, pods: Pods, registry: Registry, in_use: bool
) -> None:
    contents = base(), layer("srv/upper")
    container_id = running(pods, registry, *contents)
    if not in_use:
        cri.stop(container_id)
        cri.remove(container_id)
    damaged = tree_of("etc/made-here")
    (damaged / "bin/cat").unlink()
    found = command("fsck")
    assert found.returncode == 1
    assert "files and directories instead of" in found.stdout.decode()
    assert (container_id[:13] in found.stdout.decode()) == in_use
    assert "(repaired)" in succeed("fsck", "--repair").decode()
    assert "no problem found" in succeed("fsck").decode()
    if in_use:  # what is left stays for whoever has it mounted
        assert cri.exec(container_id, "/bin/echo", "alive").stdout == b"alive\n"
    cri.pull(name(registry))
    assert "no problem found" in succeed("fsck").decode()
    again = running(pods, registry, *contents)
    assert cri.exec(again, "/bin/cat", "/etc/made-here").stdout == b"base"
    if in_use:
        cri.stop(container_id)
        cri.remove(container_id)
    succeed("prune")
    assert damaged.exists() is False
    assert cri.exec(again, "/bin/cat", "/etc/made-here").stdout == b"base"


@layers_are_trees
def test_a_layer_whose_content_rots_is_found_by_its_blob(cri: Cri, registry: Registry) -> None:
    registry.image(base(), layer("srv/upper"), config=CONFIG)
    cri.pull(name(registry))
    tree = tree_of("etc/made-here")
    made, program = tree / "etc/made-here", tree / "bin/cat"
    facts = made.stat()
    made.write_bytes(b"rots")
    os.utime(made, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert "no problem found" in succeed("fsck").decode()
    found = command("fsck", "--contents", "full")
    assert found.returncode == 1
    assert "'etc/made-here' has another content" in found.stdout.decode()
    assert "a layer below it is damaged" in found.stderr.decode()
    program.chmod(0o4755)
    assert "'bin/cat' has mode 4755 instead of 0755" in command("fsck").stdout.decode()
    assert "(repaired)" in succeed("fsck", "--contents", "full", "--repair").decode()
    whole = command("fsck", "--contents", "full")
    assert (whole.returncode, whole.stderr) == (0, b"")
    assert tree_of("etc/made-here").joinpath("etc/made-here").read_bytes() == b"base"


def test_any_mix_leaves_nothing_too_much_and_nothing_missing(
    cri: Cri, registry: Registry, tmp_path: Path
) -> None:
    """Pulls, cancels, failures, removals and imports, side by side, over shared layers."""
    seed = int(os.environ.get("CRIAGENT_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"CRIAGENT_SEED={seed}")
    before, used, taken = settled_state(cri), usage(cri), disk()
    chance = random.Random(seed)
    contents = [
        layer(f"f{n}", "shared", size=chance.randrange(1, 1 << 18), seed=n) for n in range(6)
    ]
    good = [chance.sample(contents, chance.randrange(1, 5)) for _ in range(5)]
    for number, layers in enumerate(good):
        registry.image(*layers, tags=(f"{number}",))
        (tmp_path / f"{number}.tar").write_bytes(archive(layers, f"{MADE}:{number}"))
    registry.image(contents[0], b"no tar at all" * 100, tags=("5",))
    problems: list[str] = []

    def client(lot: random.Random) -> None:
        with contextlib.closing(Cri()) as mine:
            for _ in range(20):
                number = lot.randrange(6)
                text = name(registry, f"a/b:{number}")
                try:
                    match lot.randrange(6):
                        case 0:
                            mine.remove_image(text)
                        case 1:
                            mine.remove_image(f"{MADE}:{number}")
                        case 2:
                            request = api.PullImageRequest(image=api.ImageSpec(image=text))
                            mine.image.PullImage(request, timeout=lot.random() / 5)
                        case 3 if number < 5:
                            words = [sys.executable, "-m", "criagent", "image", "import"]
                            subprocess.run([*words, tmp_path / f"{number}.tar"], check=True)
                        case _:
                            mine.pull(text)
                except grpc.RpcError as error:
                    late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                    if not late and number != 5:
                        problems.append(f"{error.code()}: {error.details()}")

    lots = [random.Random(chance.randrange(1 << 32)) for _ in range(4)]
    clients = [threading.Thread(target=client, args=(lot,)) for lot in lots]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert problems == []
    assert "no problem found" in succeed("fsck").decode()
    for image in cri.images():
        if any(MADE in tag or "127.0.0.1" in tag for tag in image.repo_tags) or not image.repo_tags:
            cri.remove_image(image.id)
    succeed("prune")
    assert settled_state(cri)["files"] == before["files"]
    assert (usage(cri), disk()) == (used, taken)
