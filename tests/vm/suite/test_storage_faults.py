# SPDX-License-Identifier: Apache-2.0
# vm: limit=14400 programs=zfs-modules.tar seconds=3000
"""With devmapper and zfs: full pools, SIGKILL at every crash point, damaged stores, many layers and
containers."""

from __future__ import annotations

import pytest

from tests.support.storage_suite import passes


@pytest.mark.timeout(7000)
@pytest.mark.parametrize("driver", ["devmapper", "zfs"])
def test_the_faults_of_the_storage_suite(driver: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("space", "crashes", "bad_stores")
    passes(driver, files, capsys, STORAGE_DRIVERS=driver)
