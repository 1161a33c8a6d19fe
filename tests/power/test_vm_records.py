# SPDX-License-Identifier: Apache-2.0
"""Power cuts of a VM whose disk was recorded by `vm_record.py`: POWER_RECORDS is its directory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.power.cuts import Cuts, after_life, after_migration
from tests.power.wake import GROUNDS

pytestmark = [pytest.mark.root, pytest.mark.timeout(14400)]

_DIRECTORY = os.environ.get("POWER_RECORDS", "")
RECORDS = sorted(Path(_DIRECTORY).iterdir()) if _DIRECTORY else []


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.name)
def test_cuts_of_a_vm(record: Path, scratch: Path) -> None:
    facts = json.loads((record / "record.json").read_text())
    ground = next(ground for ground in GROUNDS if str(ground) == facts["ground"])
    after = after_life if facts["life"] == "life" else after_migration
    Cuts(ground, scratch, record / "journal").each(after(ground, scratch, facts["contents"]))
