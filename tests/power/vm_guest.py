#!/opt/venv/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What runs in the VM whose power `vm_cuts.py` cuts: it wakes up, looks, and lives until the cut.

It asks the host what is to be done by a line on the control port, which `run-payload` hands down as
descriptor 8, and marks each step there; a step goes on when the host has answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from criagent.kernel.mount import MS_BIND, mount
from tests.power.life import LOGS, MAYBE, PRESENT, Life, content
from tests.power.node import ROOT, configuration, run
from tests.power.wake import after_cut
from tests.support.cri_client import BUSYBOX, DEBIAN, Cri
from tests.support.units import systemctl

_DISK = Path("/dev/vdd")
_CONTROL = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DROP_IN = Path("/etc/criagent/config.d/power.toml")


def ask(word: str, value: object = None) -> Any:
    """Send a line to the host; returns what it answers."""
    os.write(_CONTROL, f"power {word} {json.dumps(value)}\n".encode())
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(_CONTROL, 1)
    return json.loads(line)


def mark(text: str) -> None:
    ask("mark", text)


def migrate(driver: str) -> None:
    run(sys.executable, "-m", "criagent", "storage", "migrate", "--to", driver)


@contextlib.contextmanager
def serving(driver: str) -> Iterator[Cri]:
    """The service with that driver on the disk."""
    _DROP_IN.parent.mkdir(exist_ok=True)
    _DROP_IN.write_text(configuration(driver))
    systemctl("start", "criagent")
    cri = Cri()
    try:
        yield cri
    finally:
        cri.close()
        systemctl("stop", "criagent")


def wake(order: dict[str, Any]) -> list[str]:
    """What is wrong after the last cut; then nothing is left on the disk but an empty root."""
    driver, marks = order["driver"], [text.encode() for text in order["marks"]]
    if order["migrating"]:
        _DROP_IN.write_text(configuration(driver))
        migrate("native")
    with serving("native" if order["migrating"] else driver) as cri:
        found = after_cut(cri, marks, order["contents"])
    if order["migrating"]:
        migrate(driver)
    run("umount", "-R", ROOT)
    check = subprocess.run([*order["check"], _DISK], capture_output=True, text=True, check=False)
    if check.returncode:
        found.append(f"{order['check'][0]}: {(check.stdout + check.stderr)[-500:]}")
    run("mount", _DISK, ROOT)
    return found


def contents(driver: str) -> dict[str, str]:
    """The content of each image, which is removed again."""
    with serving(driver) as cri:
        for image in (BUSYBOX, DEBIAN):
            cri.pull(image, timeout=300)
        found = {image: content(cri, image) for image in (BUSYBOX, DEBIAN)}
        for image in found:
            cri.remove_image(image)
    return found


def migration(driver: str) -> None:
    """Images to another driver and back."""
    with serving(driver) as cri:
        for image in (BUSYBOX, DEBIAN):
            mark(json.dumps([f"image {image}", MAYBE]))
            cri.pull(image, timeout=300)
            mark(json.dumps([f"image {image}", PRESENT]))
    ask("migrating")
    migrate("native")


def main() -> None:
    order = ask("hello")
    systemctl("stop", "criagent")
    Path(LOGS).mkdir(exist_ok=True)
    run("blockdev", "--flushbufs", _DISK)
    boot = Path("/run/boot_id")
    boot.write_text(f"00000000-0000-4000-8000-{order['number']:012d}\n")
    mount(boot, _BOOT_ID, flags=MS_BIND)
    if not order["contents"]:
        run(*order["mkfs"], _DISK)
    ROOT.mkdir()
    run("mount", _DISK, ROOT)
    if order["contents"]:
        ask("found", wake(order))
    else:
        ask("contents", contents(order["driver"]))
    if order["life"] == "life":
        with serving(order["driver"]) as cri:
            ask("lives")
            Life(cri, mark).live()
            ask("end")
    elif order["life"] == "migration":
        ask("lives")
        migration(order["driver"])
        ask("end")


if __name__ == "__main__":
    main()
