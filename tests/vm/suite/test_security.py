# SPDX-License-Identifier: Apache-2.0
# vm: seconds=200
"""AppArmor where the kernel has it, by tests of the node tier and by critest; limits; cgroups."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.e2e.test_apparmor import (
    deny,
    test_a_container_whose_profile_takes_no_signal_is_stopped_all_the_same,
    test_a_profile_of_the_node_is_enforced,
    test_a_profile_that_is_not_loaded_is_refused,
    test_the_default_profile_comes_back_when_it_was_unloaded,
    test_the_default_profile_holds_and_lets_signals_through,
    test_unconfined_and_privileged_containers_have_none,
)
from tests.e2e.test_fields import test_unified_keys_and_hugepages_reach_the_kernel
from tests.e2e.test_privileged import (
    test_a_privileged_container_has_the_nodes_cgroup_tree_and_changes_no_option_of_it,
)
from tests.support.units import systemctl

__all__ = [
    "deny",
    "test_a_container_whose_profile_takes_no_signal_is_stopped_all_the_same",
    "test_a_privileged_container_has_the_nodes_cgroup_tree_and_changes_no_option_of_it",
    "test_a_profile_of_the_node_is_enforced",
    "test_a_profile_that_is_not_loaded_is_refused",
    "test_the_default_profile_comes_back_when_it_was_unloaded",
    "test_the_default_profile_holds_and_lets_signals_through",
    "test_unconfined_and_privileged_containers_have_none",
    "test_unified_keys_and_hugepages_reach_the_kernel",
]


def slices() -> set[str]:
    listed = systemctl("list-units", "--type=slice", "--plain", "--no-legend", "--full", "--all")
    return {line.split()[0] for line in listed.splitlines()}


def test_critest_finds_all_its_apparmor_specs_passing(tmp_path: Path) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text('#!/bin/sh\nexec "$@"\n')  # critest calls it; we are root
    sudo.chmod(0o755)
    before = slices()
    done = subprocess.run(
        ["critest", "-ginkgo.focus=AppArmor", "-ginkgo.no-color"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}:/usr/sbin"},
        capture_output=True,
        text=True,
        check=False,
    )
    for name in slices() - before:
        systemctl("stop", name)  # the parent of its pods, which it leaves behind
    found = re.search(r"(\d+) Passed \| (\d+) Failed", done.stdout)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    assert (found[1], found[2]) == ("9", "0"), done.stdout[-4000:]
