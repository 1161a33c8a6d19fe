# SPDX-License-Identifier: Apache-2.0
"""python3 -m tests.power.vm_record RECORDS BOOT WORK DATA: lives of a VM's agent, to be cut off.

`make vm-power-records` calls it by `tests/vm/run`. On each ground one machine leads a life of pods
and images, and one a migration. Below RECORDS each gets a directory with the `journal` of its disk
and `record.json`. Every position of a journal is a moment at which QEMU could have been killed:
`test_vm_records.py` wakes up the node of many such moments in the time that one machine takes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path

from tests.power.vm import Chain, Moment, Sessions
from tests.power.wake import GROUNDS

LIVES = ("life", "migration")


def main(records: str, boot: str, work: str, data: str) -> int:
    sessions = Sessions(Path(boot), Path(work), Path(data))
    names = os.environ.get("GROUND", "")
    failures: list[str] = []
    for ground in GROUNDS:
        for life in LIVES:
            if names not in str(ground) or (life == "migration" and ground.driver == "native"):
                continue
            begin = time.monotonic()
            record = Path(records, f"{ground.driver}-{ground.name}-{life}")
            shutil.rmtree(record, ignore_errors=True)
            record.mkdir(parents=True)
            chain = Chain(ground)
            failures += sessions.lead(chain, 0, Moment.end(life), record / "journal")
            facts = {"ground": str(ground), "life": life, "contents": chain.contents}
            (record / "record.json").write_text(json.dumps(facts))
            print(f"{ground}, {life}: {time.monotonic() - begin:.0f} s", flush=True)
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
