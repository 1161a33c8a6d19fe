# SPDX-License-Identifier: Apache-2.0
"""Cgroup names and limits: inside the pod's cgroup, and only limits that the node can keep."""

from __future__ import annotations

from typing import Literal

import pytest

from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.model.common import HugepageLimit, Resources
from criagent.runtime.node.cgroup_names import (
    CgroupDriver,
    container_cgroup,
    container_cgroups_path,
    pod_cgroup,
    validate_cgroup_parent,
)
from criagent.runtime.spec.limits import resources_to_oci

SYSTEMD, CGROUPFS = CgroupDriver.SYSTEMD, CgroupDriver.CGROUPFS
EVERY = frozenset({"cpu", "cpuset", "memory", "pids", "io", "hugetlb"})
POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8d_0f.slice"


@pytest.mark.parametrize(
    ("driver", "parent", "path", "cgroup"),
    [
        (CGROUPFS, "/kubepods/pod1", "/kubepods/pod1/abc", "/kubepods/pod1/abc"),
        (CGROUPFS, "kubepods/pod1/", "/kubepods/pod1/abc", "/kubepods/pod1/abc"),
        (CGROUPFS, "", "/cri/abc", "/cri/abc"),
        (CGROUPFS, "/test.slice", "/test.slice/abc", "/test.slice/abc"),
        (SYSTEMD, "", "system.slice:cri:abc", "/system.slice/cri-abc.scope"),
        (
            SYSTEMD,
            "kubepods-burstable-pod8d_0f.slice",
            "kubepods-burstable-pod8d_0f.slice:cri:abc",
            f"{POD}/cri-abc.scope",
        ),
        (
            SYSTEMD,
            POD,
            "kubepods-burstable-pod8d_0f.slice:cri:abc",
            f"{POD}/cri-abc.scope",
        ),
    ],
)
def test_a_container_lives_in_its_pods_cgroup(
    driver: CgroupDriver, parent: str, path: str, cgroup: str
) -> None:
    assert container_cgroups_path(driver, parent, "abc") == path
    assert container_cgroup(driver, parent, "abc") == cgroup
    assert cgroup.startswith(pod_cgroup(driver, parent) + "/")


@pytest.mark.parametrize(
    "parent",
    ["..", "/..", "/a/../b", "a//b", "/a b", "/a\n", "\0", "/a/$(x)", "//", "/a/é", "a;b"],
)
def test_parents_that_are_no_plain_path_are_refused(parent: str) -> None:
    with pytest.raises(InvalidRequestError, match="cgroup_parent"):
        validate_cgroup_parent(parent)
    for driver in CgroupDriver:
        with pytest.raises(InvalidRequestError):
            container_cgroups_path(driver, parent, "abc")


@pytest.mark.parametrize("parent", ["/kubepods/pod1", "kubepods", ".slice", "-a.slice", "a-.slice"])
def test_the_systemd_driver_needs_a_slice(parent: str) -> None:
    with pytest.raises(InvalidRequestError, match="slice"):
        container_cgroups_path(SYSTEMD, parent, "abc")


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (Resources(), {}),
        (
            Resources(cpu_shares=512, cpu_quota=50_000, cpu_period=100_000),
            {"cpu": {"shares": 512, "quota": 50_000, "period": 100_000}},
        ),
        (Resources(cpu_quota=50_000), {"cpu": {"quota": 50_000, "period": 100_000}}),
        (Resources(cpu_quota=-1), {"cpu": {"quota": -1}}),
        (
            Resources(cpuset_cpus="0-3,7", cpuset_mems="0"),
            {"cpu": {"cpus": "0-3,7", "mems": "0"}},
        ),
        (Resources(memory_limit_in_bytes=1 << 20), {"memory": {"limit": 1 << 20}}),
        (
            Resources(unified={"memory.high": "1000", "pids.max": "max"}),
            {"unified": {"memory.high": "1000", "pids.max": "max"}},
        ),
        (
            Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=0),)),
            {"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]},
        ),
    ],
)
def test_limits_are_said_as_oci_says_them(
    resources: Resources, expected: dict[str, object]
) -> None:
    assert resources_to_oci(resources, controllers=EVERY) == expected


@pytest.mark.parametrize(
    ("resources", "memory"),
    [
        (Resources(memory_limit_in_bytes=100), {"limit": 100, "swap": 100}),
        (
            Resources(memory_limit_in_bytes=100, memory_swap_limit_in_bytes=150),
            {"limit": 100, "swap": 150},
        ),
        (
            Resources(memory_limit_in_bytes=100, unified={"memory.swap.max": "7"}),
            {"limit": 100},
        ),
    ],
)
def test_a_memory_limit_means_no_swap_unless_asked(
    resources: Resources, memory: dict[str, int]
) -> None:
    assert resources_to_oci(resources, controllers=EVERY, swap=True)["memory"] == memory


def test_without_swap_accounting_nothing_is_said_about_swap() -> None:
    resources = Resources(
        memory_limit_in_bytes=100,
        memory_swap_limit_in_bytes=150,
        unified={"memory.swap.max": "0"},
    )
    assert resources_to_oci(resources, controllers=EVERY) == {"memory": {"limit": 100}}


LIMITS = [
    (Resources(cpu_shares=2), "cpu"),
    (Resources(cpuset_mems="0"), "cpuset"),
    (Resources(memory_limit_in_bytes=1), "memory"),
    (Resources(unified={"io.weight": "1"}), "io"),
    (Resources(hugepage_limits=(HugepageLimit(page_size="1GB", limit=1),)), "hugetlb"),
]


@pytest.mark.parametrize(("resources", "controller"), LIMITS)
def test_a_limit_that_the_node_cannot_keep_is_refused_or_left_out(
    resources: Resources, controller: str
) -> None:
    lacking = EVERY - {controller}
    with pytest.raises(UnsupportedError, match=f'"{controller}"'):
        resources_to_oci(resources, controllers=lacking)
    assert resources_to_oci(resources, controllers=lacking, missing="ignore") == {}


def test_no_hugepages_at_all_is_no_request_of_the_controller() -> None:
    resources = Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=0),))
    assert resources_to_oci(resources, controllers=frozenset()) == {}


@pytest.mark.parametrize(
    "unified",
    [
        {"cgroup.procs": "1"},
        {"cgroup.freeze": "1"},
        {"memory": "1"},
        {"../memory.max": "1"},
        {"memory.max/../../x": "1"},
        {"memory.max\n": "1"},
        {"memory.high": "1\n2"},
        {"memory.high": ""},
        {"memory.high": "1" * 4097},
        {f"memory.a{'b' * 255}": "1"},
        {f"memory.a{number}": "1" for number in range(257)},
    ],
)
def test_unified_keys_are_limits_and_values_one_line(unified: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError, match="unified"):
        resources_to_oci(Resources(unified=unified), controllers=EVERY)


def test_page_sizes_are_few() -> None:
    limits = tuple(HugepageLimit(page_size=f"{size}KB", limit=1) for size in range(65))
    with pytest.raises(InvalidRequestError, match="hugepage"):
        resources_to_oci(Resources(hugepage_limits=limits), controllers=EVERY)


@pytest.mark.parametrize("size", ["", "2M", "2mb", "-2MB", "../2MB", "2MB\n"])
def test_page_sizes_are_like_the_kernels(size: str) -> None:
    resources = Resources(hugepage_limits=(HugepageLimit(page_size=size, limit=1),))
    with pytest.raises(InvalidRequestError, match="hugepage"):
        resources_to_oci(resources, controllers=EVERY)


@pytest.mark.parametrize(
    "resources",
    [
        Resources(cpu_period=-1),
        Resources(cpu_quota=-2),
        Resources(cpu_shares=-1),
        Resources(memory_limit_in_bytes=-2),
        Resources(memory_swap_limit_in_bytes=-2),
        Resources(oom_score_adj=1001),
        Resources(cpuset_cpus="0-"),
        Resources(cpuset_cpus="0,,1"),
        Resources(cpuset_mems="all"),
        Resources(cpuset_cpus="0," * 30_000 + "1"),
    ],
)
@pytest.mark.parametrize("missing", ["error", "ignore"])
def test_values_that_are_no_limits_are_refused_on_any_node(
    resources: Resources, missing: Literal["error", "ignore"]
) -> None:
    for controllers in (EVERY, frozenset[str]()):
        with pytest.raises(InvalidRequestError):
            resources_to_oci(resources, controllers=controllers, missing=missing)
