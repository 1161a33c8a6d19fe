# SPDX-License-Identifier: Apache-2.0
"""SIGKILL at every crash point that the life of an image and a container reaches with a driver.

Each is killed twice in a row at the point, then lives to its end: nothing is lost meanwhile, and
nothing is left then.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from criagent.config.storage_section import Storage as StorageSection
from criagent.image.snapshots.drivers.available import driver as driver_class
from criagent.kernel import project_quota
from criagent.kernel.mount import mountinfo
from tests.storage.grounds import file_system, ground
from tests.storage.killed import Lives

pytestmark = pytest.mark.root

_REACH = re.compile(r'faults\.reach\("([^"]+)"\)')


def points_of(driver: str) -> set[str]:
    """Those that the driver's own source names: its module's, or its package's."""
    own = sys.modules[driver_class(driver).__module__]
    assert own.__file__ is not None
    file = Path(own.__file__)
    files = file.parent.glob("*.py") if file.name == "driver.py" else [file]
    return {point for one in files for point in _REACH.findall(one.read_text())}


def mounts_below(top: Path) -> list[str]:
    return [m.target for m in mountinfo() if m.target.startswith(f"{top}/")]


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_sigkill_at_every_crash_point(
    column: tuple[str, str], living: Lives, tmp_path: Path
) -> None:
    driver, kind = column
    reached = survived(driver, kind, living, tmp_path)
    assert points_of(driver) - reached <= ground(driver).unreached


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("driver", ["overlay", "native"])
@pytest.mark.parametrize("kind", ["ext4-prjquota", "xfs-prjquota"])
def test_sigkill_at_every_crash_point_of_a_limit(
    driver: str, kind: str, living: Lives, tmp_path: Path
) -> None:
    """Neither does a limit stay behind when its container is gone."""
    try:
        with file_system(tmp_path / "trial", driver, kind):
            pass
    except subprocess.CalledProcessError:
        pytest.skip(f"this kernel does not mount {kind}; make vm-test has one that does")
    reached = survived(driver, kind, living, tmp_path, only="container-limit:")
    assert len(reached) == 3


def limits(top: Path) -> list[int]:
    """Projects with a limit, where the file system has them."""
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not project_quota.enforced(fd):
            return []
        first = StorageSection().project_ids_from
        every = list(project_quota.projects(fd, first, 2**32 - 2))
        return [one.id for one in every if one.limit_bytes]
    finally:
        os.close(fd)


def survived(driver: str, kind: str, living: Lives, tmp_path: Path, only: str = "") -> set[str]:
    """The names of the points that a life reaches, each of which it has survived.

    Without `only`, which the points that it is killed at begin with, all are tried.
    """
    with file_system(tmp_path / "whole", driver, kind) as top:
        assert living.run(top, driver) == 0, living.output(top)
        points = [point for point in living.reached(top) if point.startswith(only)]
        after = [path.removeprefix(str(top)) for path in mounts_below(top)]
        assert limits(top) == []
    reached = {point.partition("#")[0] for point in points}
    if not os.environ.get("STORAGE_ALL"):
        points = [point for point in points if point.endswith("#1")]
    for number, point in enumerate(points):
        with file_system(tmp_path / f"disk-{number}", driver, kind) as top:
            told = f"{driver}/{kind} at {point}"
            assert living.run(top, driver, point) == -signal.SIGKILL, told + living.output(top)
            again = living.run(top, driver, point)  # which may not reach it any more
            assert again in {0, -signal.SIGKILL}, told + living.output(top)
            assert living.run(top, driver) == 0, told + living.output(top)
            left = [path.removeprefix(str(top)) for path in mounts_below(top)]
            assert left == after, told
            assert limits(top) == [], told
    return reached
