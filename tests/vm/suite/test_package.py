# SPDX-License-Identifier: Apache-2.0
# vm: packages=1 limit=2400 seconds=400
"""The Debian package on a machine with systemd and limits: the README's lines, then an update."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from criagent.version import VERSION
from tests.support.cri_client import Cri, api
from tests.support.units import main_pid, show
from tests.support.vm_fixtures import VmPods, cgroup_of, sleeper
from tests.support.waiting import until

PACKAGES = Path("/payload/packages")
UNITS = Path("/etc/systemd/system")


def run(*command: str | Path) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(which: str) -> None:
    (package,) = (PACKAGES / which).glob("*.deb")
    run("apt-get", "install", "-qq", "--yes", "--allow-downgrades", package)


def init(cri: Cri, container_id: str) -> str:
    return (cgroup_of(cri, container_id) / "cgroup.procs").read_text().split()[0]


def test_the_package_takes_over_and_is_updated_while_a_pod_runs(pods: VmPods) -> None:
    sandbox = pods.sandbox()
    container_id = pods.created(sleeper("kept", "sleep", "100000"), sandbox)
    pid = init(pods.cri, container_id)
    # docs/install.md, "From an installation from source to the package"
    for unit in ("criagent", "criagent-monitors"):
        (UNITS / f"{unit}.service").unlink()
    Path("/usr/bin/criagent").unlink()
    shutil.move("/etc/crictl.yaml", "/etc/crictl.yaml.old")
    install("first")
    run("systemctl", "enable", "criagent")
    run("systemctl", "restart", "criagent")
    assert show("criagent", "FragmentPath") == "/usr/lib/systemd/system/criagent.service"
    assert run("criagent", "version").startswith(f"criagent {VERSION} (")
    check(container_id, pid)

    before = main_pid("criagent")
    install("next")
    assert run("criagent", "version") == "criagent 99.0.0 (next)\n"
    until(lambda: main_pid("criagent") not in {0, before}, "the next agent", 120)
    check(container_id, pid)
    # A pod of the new version, with a limit that the kernel has.
    later = Cri()
    pods.cri = later
    made = pods.created(sleeper("later", "sleep", "100000"), pods.sandbox())
    assert later.status(made).state == api.CONTAINER_RUNNING
    assert (cgroup_of(later, made) / "memory.max").read_text().strip()

    # The way back of docs/install.md; the pod of the later version is ended.
    run("systemctl", "stop", "criagent")
    install("first")
    (copy,) = Path("/var/lib/criagent").glob("state.db.v*[0-9]")
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        Path("/var/lib/criagent", name).unlink(missing_ok=True)
    copy.rename("/var/lib/criagent/state.db")
    run("systemctl", "start", "criagent")
    check(container_id, pid)
    assert [one.id for one in Cri().containers()] == [container_id]


def check(container_id: str, pid: str) -> None:
    """The container runs as before, and the agent can use it."""
    cri = Cri()
    assert cri.status(container_id).state == api.CONTAINER_RUNNING
    assert init(cri, container_id) == pid
    assert cri.exec(container_id, "echo", "here", timeout=60).stdout == b"here\n"
    cri.close()
