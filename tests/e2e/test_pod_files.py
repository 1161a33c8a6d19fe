# SPDX-License-Identifier: Apache-2.0
"""The files that a pod's containers share: they cannot fill /run, and local users see none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.made_images import HANDLERS
from tests.support.mapped import mapped
from tests.support.mapped_pods import words
from tests.support.pods import Pods

pytestmark = pytest.mark.root

RUN = Path("/run/criagent")
NOBODY = 65534
ETC = ("/etc/resolv.conf", "/etc/hostname", "/etc/hosts")

# Prints which of the paths on stdin this user gets any fact of.
_LOOK = """import json, os, sys
found = []
for path in json.load(sys.stdin):
    for look in (os.lstat, os.listdir, os.readlink, lambda p: os.open(p, os.O_RDONLY)):
        try:
            look(path)
            found.append(path)
        except OSError:
            pass
print(json.dumps(sorted(set(found))))
"""


def plain(_: api.PodSandboxConfig) -> None:
    """A pod as any other."""


def sandbox(
    pods: Pods, handler: str, change: Callable[[api.PodSandboxConfig], object]
) -> tuple[str, api.PodSandboxConfig]:
    config = pods.config()
    change(config)
    return pods.cri.run(config, handler=handler), config


def everything() -> list[str]:
    """All paths below the run directory, as root sees them; not those of root file systems."""
    found = []
    for top, directories, files in os.walk(RUN):
        if Path(top).name == "rootfs":
            directories.clear()
            continue
        found += [str(Path(top, name)) for name in (*directories, *files)]
    return found


def seen_by(user: int) -> list[str]:
    """What of it a local user of the node sees anything of."""
    identity = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    program = ["env", "--chdir=/", sys.executable, "-I", "-S", "-c", _LOOK]
    done = subprocess.run(
        ["setpriv", *identity, *program],
        input=json.dumps(everything()).encode(),
        capture_output=True,
        check=True,
    )
    return list(json.loads(done.stdout))


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("change", [plain, mapped()], ids=["plain", "mapped"])
def test_a_full_file_is_the_pods_trouble_alone(
    pods: Pods, handler: str, change: Callable[[api.PodSandboxConfig], object]
) -> None:
    bystander = pods.running()
    container_id = pods.running(pod=sandbox(pods, handler, change))
    before = os.statvfs("/run").f_bfree
    for path in ETC:
        done = pods.cri.exec(container_id, "dd", "if=/dev/zero", f"of={path}", "bs=1M", "count=200")
        assert done.exit_code != 0
        assert b"No space left on device" in done.stderr
    assert before == os.statvfs("/run").f_bfree
    assert words(pods, bystander, "echo", "fine") == "fine"
    pods.running()
    pods.cri.stop(bystander)
    assert pods.cri.status(bystander).exit_code == 137
    words(pods, container_id, "sh", "-c", "echo 10.0.0.1 name > /etc/hosts && cat /etc/hosts")


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("change", [plain, mapped()], ids=["plain", "mapped"])
@pytest.mark.parametrize("readonly", [False, True])
def test_files_of_the_pod_bring_no_programs_and_no_devices(
    pods: Pods, handler: str, change: Callable[[api.PodSandboxConfig], object], *, readonly: bool
) -> None:
    def root(config: api.ContainerConfig) -> None:
        config.linux.security_context.readonly_rootfs = readonly

    container_id = pods.running(pod=sandbox(pods, handler, change), change=root)
    table = words(pods, container_id, "cat", "/proc/self/mountinfo").splitlines()
    for path in ETC:
        (options,) = [line.split()[5].split(",") for line in table if line.split()[4] == path]
        assert {"nosuid", "nodev", "noexec", "ro" if readonly else "rw"} <= set(options)


def test_local_users_see_nothing_of_any_pod(pods: Pods) -> None:
    agent.stop()  # a user namespace of another test may have opened the way
    pods.cri = agent.start()
    sandbox, config = pods.sandbox()
    pods.running(
        "sh", "-c", "echo secret > /dev/shm/secret; exec sleep 1000", pod=(sandbox, config)
    )
    assert str(RUN / f"sandboxes/{sandbox}/shm") in everything()
    names = ("sandboxes", "containers", "exits", "attach", "runtime", "criu")
    closed = [str(RUN / name) for name in names]
    visible = seen_by(NOBODY)
    assert [path for path in visible if path not in closed and Path(path).is_dir()] == []
    assert [path for path in visible if path.startswith(tuple(f"{top}/" for top in closed))] == []


def test_a_user_namespace_opens_the_way_to_its_own_pod_alone(pods: Pods) -> None:
    config = pods.config()
    mapped()(config)
    mapped_box = pods.cri.run(config)
    mapped_row = pods.running(pod=(mapped_box, config))
    sandbox, other = pods.sandbox()
    container_id = pods.running(pod=(sandbox, other))
    closed = (f"{RUN}/sandboxes/", f"{RUN}/containers/")
    below = [path for path in seen_by(NOBODY) if path.startswith(closed)]
    # Their names are in every process's mountinfo; there is nothing behind them.
    assert {Path(path).name for path in below} <= {mapped_box, sandbox, mapped_row, container_id}
    assert [path for path in below if os.access(path, 0) and os.stat(path).st_mode & 0o007] == []


def test_pods_of_0_1_are_closed_and_go_on(pods: Pods) -> None:
    """They have their files in the sandbox's directory, which everybody could pass."""
    sandbox, config = pods.sandbox()
    private = pods.config()
    mapped()(private)
    mapped_box = pods.cri.run(private)
    agent.stop()
    for name in (sandbox, mapped_box):
        directory = RUN / "sandboxes" / name
        texts = {path.name: path.read_text() for path in (directory / "etc").iterdir()}
        owner = (directory / "etc/hosts").stat()
        subprocess.run(["umount", directory / "etc"], check=True)
        (directory / "etc").rmdir()
        for file, text in texts.items():
            (directory / file).write_text(text)
            os.chown(directory / file, owner.st_uid, owner.st_gid)
        (directory / "hosts").write_text("10.1.2.3 of-old\n")
        os.chown(directory, 0, 0)
        directory.chmod(0o755)
    (RUN / "sandboxes").chmod(0o711)
    pods.cri = agent.start()
    assert (RUN / "sandboxes" / sandbox).stat().st_mode & 0o777 == 0o700
    assert (RUN / "sandboxes" / mapped_box).stat().st_mode & 0o777 == 0o710
    for pod in ((sandbox, config), (mapped_box, private)):
        container_id = pods.running(pod=pod)
        assert words(pods, container_id, "cat", "/etc/hosts") == "10.1.2.3 of-old"


def test_a_restart_closes_what_no_user_namespace_needs(cri: Cri) -> None:
    for name in ("sandboxes", "containers"):
        (RUN / name).chmod(0o711)
    agent.stop()
    agent.start().close()
    for name in ("sandboxes", "containers"):
        assert (RUN / name).stat().st_mode & 0o777 == 0o700
