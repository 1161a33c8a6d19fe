# SPDX-License-Identifier: Apache-2.0
"""What privileged containers are given of the node, and that the node keeps it as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cri_client import api
from tests.support.made_images import HANDLERS
from tests.support.mapped_pods import words
from tests.support.pods import Pods

pytestmark = pytest.mark.root

PLACE = " /sys/fs/cgroup "


def privileged(config: api.PodSandboxConfig | api.ContainerConfig) -> None:
    config.linux.security_context.privileged = True


def line_of(table: str) -> str:
    """The topmost mount on /sys/fs/cgroup."""
    return [line for line in table.splitlines() if PLACE in line][-1]


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_privileged_container_has_the_nodes_cgroup_tree_and_changes_no_option_of_it(
    pods: Pods, handler: str
) -> None:
    """Outside of cgroup namespaces a fresh mount takes nsdelegate and memory_recursiveprot from the
    node's. A test node has a cgroup namespace itself; the VM tier has not."""
    before = line_of(Path("/proc/self/mountinfo").read_text())
    config = pods.config()
    privileged(config)
    sandbox = pods.cri.run(config, handler=handler)
    container_id = pods.running(pod=(sandbox, config), change=privileged)
    inside = line_of(words(pods, container_id, "cat", "/proc/self/mountinfo"))
    assert line_of(Path("/proc/self/mountinfo").read_text()) == before
    of_node, of_container = (line.split(" - ")[1].split() for line in (before, inside))
    assert of_container[0] == of_node[0] == "cgroup2"
    assert of_container[2] == of_node[2]
    assert before.split()[2:4] == inside.split()[2:4]  # device and root of the tree
    options = inside.split()[5].split(",")
    assert {"rw", "nosuid", "nodev", "noexec"} <= set(options)
    words(pods, container_id, "mkdir", "/sys/fs/cgroup/made-inside")
    assert Path("/sys/fs/cgroup/made-inside").is_dir()
    words(pods, container_id, "rmdir", "/sys/fs/cgroup/made-inside")
