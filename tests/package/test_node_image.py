# SPDX-License-Identifier: Apache-2.0
"""The image of the installer: its pod puts criagent onto the node and restarts the agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from criagent.version import VERSION
from tests.package.package_node import PACKAGES
from tests.support.cri_client import Cri, api, container, pod
from tests.support.systemd_node import SystemdNode
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

IMAGE = f"docker.io/criagent/node:{VERSION}"
ON_NODE = ("/usr/bin/criagent", "/usr/lib/systemd/system/criagent.service", "/etc/default/criagent")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[SystemdNode]:
    """A machine whose agent was installed from source, with the image."""
    machine = tmp_path / "machine"
    machine.mkdir()
    booted = SystemdNode(machine)
    try:
        (archive,) = PACKAGES.glob("node-image/*.oci.tar")
        assert IMAGE in booted.run("criagent", "image", "import", "-", stdin=archive.read_bytes())
        yield booted
    finally:
        booted.close()


def install(cri: Cri, name: str, *arguments: str, mounted: str = "/") -> str:
    """The id of a started container as in deploy/daemonset.yaml."""
    config = pod(name, log_directory="/tmp/logs")
    config.linux.security_context.privileged = True
    config.linux.security_context.namespace_options.pid = api.NODE
    config.linux.security_context.namespace_options.network = api.NODE
    sandbox = cri.run(config)
    spec = container(name, (), IMAGE)
    spec.args.extend(arguments)
    spec.linux.security_context.privileged = True
    spec.linux.security_context.namespace_options.pid = api.NODE
    spec.mounts.add(container_path="/host", host_path=mounted)
    container_id = cri.create(sandbox, spec, config)
    cri.start(container_id)
    return container_id


def ended(cri: Cri, container_id: str) -> int:
    until(lambda: cri.status(container_id).state == api.CONTAINER_EXITED, "the end", 60)
    return cri.status(container_id).exit_code


def main_pid(node: SystemdNode) -> str:
    return node.run("systemctl", "show", "--property=MainPID", "--value", "criagent").strip()


def log(node: SystemdNode, name: str) -> str:
    return node.run("cat", f"/tmp/logs/{name}.log", check=False)


def test_the_installer_replaces_the_agent_that_runs_it(node: SystemdNode) -> None:
    cri = node.client()
    configuration = node.run("cat", "/etc/criagent/config.toml")
    before = main_pid(node)
    container_id = install(cri, "first")
    until(lambda: f"criagent {VERSION} is installed" in log(node, "first"), "the end of it", 60)
    assert main_pid(node) != before
    assert node.run("systemctl", "is-active", "criagent") == "active\n"
    assert node.run("systemctl", "is-enabled", "criagent") == "enabled\n"
    for file in ON_NODE:
        assert node.run("stat", "-c", "%F", file) == "regular file\n"
    unit = node.run("systemctl", "show", "--property=FragmentPath", "--value", "criagent")
    assert unit == "/usr/lib/systemd/system/criagent.service\n"
    assert "/usr/lib/criagent" in node.run("cat", "/usr/bin/criagent")
    assert node.run("criagent", "version").startswith(f"criagent {VERSION} (")
    assert node.run("cat", "/etc/criagent/config.toml") == configuration
    # The pod of the installer goes on, and the new agent has it.
    cri.close()
    cri = node.client()
    assert cri.status(container_id).state == api.CONTAINER_RUNNING
    # What is installed already is left alone.
    before = main_pid(node)
    assert ended(cri, install(cri, "again", "--once")) == 0
    assert main_pid(node) == before
    for left in cri.pods():
        cri.remove_pod(left.id)
    cri.close()


@pytest.mark.parametrize(
    ("mounted", "prepare", "reason"),
    [
        ("/srv", "true", "the host's root is not at /host"),
        ("/", ": > /var/lib/dpkg/info/criagent.list", "the Debian package"),
        ("/", "mount --bind /bin/false /usr/bin/python3", "no Python 3.13"),
    ],
)  # fmt: skip
def test_a_host_that_cannot_have_it_is_left_as_it_was(
    node: SystemdNode, mounted: str, prepare: str, reason: str
) -> None:
    node.run("sh", "-ec", prepare)
    cri = node.client()
    assert ended(cri, install(cri, "refused", "--once", mounted=mounted)) == 1
    assert reason in log(node, "refused")
    assert node.run("ls", "-d", "/usr/lib/criagent", check=False) == ""
    for left in cri.pods():
        cri.remove_pod(left.id)
    cri.close()
