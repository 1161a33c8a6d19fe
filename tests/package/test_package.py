# SPDX-License-Identifier: Apache-2.0
"""The Debian package: installed, updated, taken back, removed and purged, with running pods."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from criagent.store import migrations
from criagent.version import VERSION
from tests.package.package_node import PackageNode
from tests.support.cri_client import Cri, container, pod
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SOURCE = "docker://127.0.0.1:5000/e2e-test-images/busybox:1.29-2"
IMAGE = "docker.io/library/busybox:package"
STATE = "/var/lib/criagent"
SCHEMA = migrations.latest()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[PackageNode]:
    """A machine with the package and without a running agent."""
    machine = tmp_path / "machine"
    machine.mkdir()
    booted = PackageNode(machine)
    try:
        booted.install("first")
        yield booted
    finally:
        booted.close()


def serving(node: PackageNode, tmp_path: Path) -> Cri:
    """A client of the started agent, which has an image."""
    node.run("systemctl", "start", "criagent")
    archive = tmp_path / "image.tar"
    copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--insecure-policy", SOURCE]
    subprocess.run([*copy, f"docker-archive:{archive}:busybox:package"], check=True)
    node.run("criagent", "image", "import", "-", stdin=archive.read_bytes())
    return node.client()


def started(cri: Cri, name: str) -> str:
    """The id of a running container in a pod of its own."""
    config = pod(name, log_directory="/tmp/logs")
    sandbox = cri.run(config)
    container_id = cri.create(sandbox, container("main", ("sleep", "100000"), IMAGE), config)
    cri.start(container_id)
    return container_id


def left(node: PackageNode) -> str:
    """Traces of criagent on the machine."""
    script = f"""
        find /etc /usr/bin /usr/lib /usr/share /run {STATE} -mindepth 1 -name '*criagent*' \
            -not -path '/usr/lib/python3*' -not -path '/run/udev/*' 2> /dev/null
        find {STATE} -mindepth 1
        ls -d /sys/class/net/cri* /sys/fs/cgroup/cri /etc/crictl.yaml 2> /dev/null
        nft list tables | grep criagent
        pgrep -ax 'conmon|catatonit|criagent'
        systemctl list-units --all --no-legend | grep -i cri |
            grep -v var-lib-criagent.mount  # of the test machine itself
    """
    return node.shows("bash", "-c", script)


def test_an_installation_starts_and_enables_nothing(node: PackageNode) -> None:
    for unit in ("criagent", "criagent-monitors"):
        assert node.shows("systemctl", "is-active", unit) == "inactive"
    assert node.shows("systemctl", "is-enabled", "criagent") == "disabled"
    version = node.shows("criagent", "version")
    assert version.startswith(f"criagent {VERSION} (")
    conffiles = node.run("dpkg-query", "-W", "-f", "${Conffiles}", "criagent")
    for file in ("/etc/criagent/config.toml", "/etc/crictl.yaml", "/etc/default/criagent"):
        assert file in conffiles
    assert (
        node.shows("criagent", "config", "check") == "/etc/criagent/config.toml: no problem found"
    )
    assert node.run("dpkg", "--verify", "criagent") == ""


def test_an_update_and_the_way_back_keep_pods_running(node: PackageNode, tmp_path: Path) -> None:
    cri = serving(node, tmp_path)
    kept = started(cri, "before")
    pid = node.pid(cri, kept)
    cri.close()

    node.install("next")
    assert node.shows("systemctl", "is-active", "criagent") == "active"
    assert node.shows("criagent", "version") == "criagent 99.0.0 (next)"
    cri = node.client()
    assert node.pid(cri, kept) == pid
    later = node.pid(cri, started(cri, "after"))
    cri.close()
    copy = f"{STATE}/state.db.v{SCHEMA}"
    assert node.shows("ls", copy) == copy

    # The former version refuses the newer database; these are the steps of docs/install.md.
    node.install("first")
    log = node.run("journalctl", "-u", "criagent", "--no-pager", "-n", "20")
    assert copy in log
    node.run("systemctl", "stop", "criagent")
    newer = f"find {STATE} -maxdepth 1 -name 'state.db' -o -maxdepth 1 -name 'state.db-*'"
    node.run("sh", "-ec", f"mkdir /root/newer; {newer} | xargs mv -t /root/newer")
    node.run("mv", copy, f"{STATE}/state.db")
    node.run("systemctl", "start", "criagent")
    assert node.shows("criagent", "version").startswith(f"criagent {VERSION} (")
    cri = node.client()
    assert (node.pid(cri, kept), [one.id for one in cri.containers()]) == (pid, [kept])
    until(lambda: not node.shows("cat", f"/proc/{later}/comm"), "the end of the later pod")
    cri.close()


def test_removal_leaves_containers_and_purge_asks_for_a_file(
    node: PackageNode, tmp_path: Path
) -> None:
    cri = serving(node, tmp_path)
    pid = node.pid(cri, started(cri, "left"))
    cri.close()
    node.run("dpkg", "--remove", "criagent")
    assert node.shows("cat", f"/proc/{pid}/comm") == "sleep"
    assert node.shows("ls", "/etc/criagent/config.toml", "/usr/bin/criagent") == (
        "/etc/criagent/config.toml"
    )
    node.run("dpkg", "--purge", "criagent")
    assert f"{STATE}/state.db" in node.shows("sh", "-c", f"ls {STATE}/*")
    node.install("first")
    node.run("systemctl", "start", "criagent")
    cri = node.client()
    assert [node.pid(cri, one.id) for one in cri.containers()] == [pid]
    for sandbox in cri.pods():
        cri.remove_pod(sandbox.id)
    cri.close()
    node.run("systemctl", "stop", "criagent")
    node.run("touch", f"{STATE}/remove-on-purge")
    node.run("dpkg", "--purge", "criagent")
    assert node.shows("ls", "-A", STATE) == ""


def test_a_reset_and_a_purge_leave_nothing(node: PackageNode, tmp_path: Path) -> None:
    cri = serving(node, tmp_path)
    started(cri, "one")
    cri.close()
    assert node.shows("criagent", "reset", "--yes") == ""  # refused: it runs
    node.run("systemctl", "disable", "--now", "criagent")
    assert "1 pods removed" in node.run("criagent", "reset", "--yes")
    node.run("systemctl", "stop", "criagent-monitors")
    node.run("dpkg", "--purge", "criagent")
    assert left(node) == ""
    program = ("env", "PYTHONPATH=/source", "/opt/venv/bin/python3", "-m", "criagent")
    found = json.loads(node.run(*program, "doctor", "--json", check=False))
    assert [one for one in found if one["name"] in {"other runtime", "kubelet"}] == []
