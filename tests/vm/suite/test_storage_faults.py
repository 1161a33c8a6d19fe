# SPDX-License-Identifier: Apache-2.0
# vm: limit=7200 programs=zfs-modules.tar seconds=2400
"""Full pools, SIGKILL at every crash point and damaged stores, with devmapper and zfs."""

from __future__ import annotations

import pytest

from tests.support.storage_suite import passes

FEWER = {"STORAGE_LAYERS": "40", "STORAGE_CONTAINERS": "40"}  # the machine is slow


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("driver", ["devmapper", "zfs"])
def test_the_faults_of_the_storage_suite(driver: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("space", "crashes", "bad_stores")
    passes(driver, files, capsys, STORAGE_DRIVERS=driver, **FEWER)
