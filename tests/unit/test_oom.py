"""Which cgroup counts a container's kills when its own is gone."""

from __future__ import annotations

import pytest

from criagent.runtime.oom import slice_of

_POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (f"{_POD}/cri-abc.scope", _POD),
        (f"{_POD}/cri-abc.scope/container", _POD),  # crun's init lives one deeper
        ("/test.slice/cri-abc.scope", "/test.slice"),
        ("/system.slice/cri-abc.scope", ""),  # other services live and die there
        ("/kubepods/burstable/pod1/abc", ""),  # cgroupfs: the cgroup outlives its processes
        ("/cri-abc.scope", ""),
        ("", ""),
    ],
)
def test_the_slice_around_a_scope(cgroup: str, expected: str) -> None:
    assert slice_of(cgroup) == expected
