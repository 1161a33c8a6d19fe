# SPDX-License-Identifier: Apache-2.0
"""`criagent storage migrate`: every image with another driver, whenever it is killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from criagent.daemon import migrate as source
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.image_archives import archive, small_layer, succeed
from tests.support.pods import Pods

pytestmark = pytest.mark.root

OTHER = Path("/mnt/migrate")
DROP_IN = Path("/etc/criagent/config.d/migrate.toml")
IMPORTED = "registry.test/migrate:1"
POINTS = re.findall(r'faults\.reach\("([^"]+)"\)', Path(source.__file__).read_text())


def storage(**more: str) -> str:
    keys = "".join(f"{key} = {value}\n" for key, value in more.items())
    return f'[storage]\nroot = "{OTHER}/root"\n{keys}'


@pytest.fixture
def root(pods: Pods) -> Iterator[Pods]:
    """Pods of an agent with a root directory of its own and two images."""
    agent.stop()
    OTHER.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "migrate", OTHER], check=True)
    start(pods)
    pods.cri.pull(BUSYBOX)
    succeed("import", "-", data=archive([small_layer(b"content")], IMPORTED))
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    pods.cri.close()
    agent.stop()
    subprocess.run(["umount", OTHER], check=True)
    OTHER.rmdir()
    pods.cri = agent.start()


def start(pods: Pods, **keys: str) -> None:
    pods.cri = agent.start(storage(**keys))


def stop(pods: Pods) -> None:
    pods.cri.close()
    agent.stop()


def migrate(*words: str, kill_at: str = "") -> subprocess.CompletedProcess[str]:
    """With the drop-in of the last agent, and one that kills."""
    DROP_IN.write_text(f'[debug]\nkill_at = "{kill_at}"\n')
    try:
        return subprocess.run(
            [sys.executable, "-m", "criagent", "storage", "migrate", *words],
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        DROP_IN.unlink()


def of_image(name: str) -> Callable[[api.ContainerConfig], None]:
    return lambda config: setattr(config.image, "image", name)


def tries(pods: Pods) -> None:
    """Both images run, one after the other."""
    for name in (BUSYBOX, IMPORTED):
        pods.cri.remove(pods.running("sleep", "1000", change=of_image(name)))
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    assert succeed("fsck") == b"no problem found\n"


def driver() -> str:
    return subprocess.run(
        [sys.executable, "-m", "criagent", "storage", "info"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()[0]


def test_there_and_back(root: Pods) -> None:
    stop(root)
    planned = migrate("--to", "native", "--dry-run")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "overlay to native: 2 images are unpacked again from blobs" in planned.stdout
    done = migrate("--to", "native")
    assert done.returncode == 0, done.stderr
    start(root)
    assert driver() == "Driver: native"
    tries(root)
    stop(root)
    assert migrate("--to", "overlay").returncode == 0
    start(root)
    assert driver() == "Driver: overlay"
    tries(root)
    stop(root)
    again = migrate("--to", "overlay")
    assert (again.returncode, again.stdout) == (0, f"{OTHER}/root has the driver overlay already\n")
    start(root)


def test_what_cannot_be_migrated_is_refused(root: Pods) -> None:
    running = migrate("--to", "native")
    assert (running.returncode, running.stdout) == (1, "")
    assert "another criagent serves" in running.stderr
    root.running()
    stop(root)
    refused = migrate("--to", "native")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "1 pods and 1 containers" in refused.stderr
    assert migrate("--to", "nativ").returncode == 2
    unfit = migrate("--to", "btrfs")
    assert unfit.returncode == 1
    start(root)
    assert driver() == "Driver: overlay"


@pytest.mark.parametrize("point", POINTS)
def test_killed_it_goes_on(root: Pods, point: str) -> None:
    stop(root)
    killed = migrate("--to", "native", kill_at=point)
    assert killed.returncode == -signal.SIGKILL
    refused = subprocess.run(
        [sys.executable, "-m", "criagent", "serve"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert refused.returncode == 1
    assert "criagent storage migrate --to native" in refused.stdout + refused.stderr
    done = migrate("--to", "native")
    assert done.returncode == 0, done.stderr
    start(root)
    assert driver() == "Driver: native"
    tries(root)


def test_an_image_without_blobs_is_pulled_again(root: Pods) -> None:
    stop(root)
    start(root, keep_blobs="false")
    root.cri.pull(BUSYBOX)
    stop(root)
    planned = migrate("--to", "native", "--dry-run", "--pull")
    assert "has no blobs and is pulled again" in planned.stdout
    done = migrate("--to", "native", "--pull")
    assert f"{BUSYBOX} pulled\n" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1  # the imported one has no registry
    start(root)
    container_id = root.running()
    root.cri.remove(container_id)


def test_without_a_registry_it_is_removed_and_named(root: Pods) -> None:
    stop(root)
    start(root, keep_blobs="false")
    root.cri.pull(BUSYBOX)
    stop(root)
    done = migrate("--to", "native")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{IMPORTED} has no blobs and is removed; pull it again" in done.stdout
    start(root)
    assert root.cri.images() == []
    with_image = Cri()
    with_image.pull(BUSYBOX)
    with_image.close()
