# SPDX-License-Identifier: Apache-2.0
"""machine.py BOOT WORK DATA: the VM itself. See `run`, which prepares what it needs.

BOOT holds disk.img, vmlinuz and initrd, WORK the payload's disk image, DATA is the image with the
programs. The first run boots and saves the state of the machine when the guest says that it is
ready; each run goes on from there. QEMU emulates one processor in one thread: with several it now
and then fell silent in kernel code that patches itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

QEMU = "qemu-system-x86_64"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "criagent"
LIMIT_S = float(os.environ.get("CRIAGENT_VM_LIMIT", "1800"))
MEMORY = os.environ.get("CRIAGENT_VM_MEMORY", "3072")
BOOT_LIMIT_S = 300
BOOTS = 3
OUT_OF_TIME = 124
BROKEN = 125
KERNEL = (
    "root=/dev/vda rw rootfstype=ext4 console=ttyS0 quiet panic=-1 net.ifnames=0 "
    "systemd.show_status=0 mitigations=off tsc=reliable psi=1 audit=0"
)
SIZES = {"payload": 512 << 20, "data": 3 << 30}
SPARE_BYTES = 1 << 30  # of the fourth disk, which only some machines have


class BrokenError(Exception):
    """The machine did not do what it should; the text says what."""


class Machine:
    """A running QEMU. Ends with the block, and with this process."""

    def __init__(self, boot: Path, disks: list[Path], console: Path, incoming: Path | None) -> None:
        self._qmp, qmp = socket.socketpair()
        self.control, control = socket.socketpair()
        self.output, output = socket.socketpair()
        self.console = console
        self._lines = b""
        self._answers = b""
        ends = [qmp, control, output]
        command = ["setpriv", "--pdeathsig", "KILL", *arguments(boot, len(disks))]
        for name, end in zip(("qmp", "control", "output"), ends, strict=True):
            command += ["-chardev", f"socket,id={name},fd={end.fileno()}"]
        command += ["-serial", f"file:{console}"]
        for number, disk in enumerate(disks):
            kind = "qcow2" if disk.suffix == ".qcow2" else "raw"
            only = ",read-only=on" if number == 1 else ""
            # Its flushes reach the file of the fourth disk alone.
            cache = "writeback" if number == 3 else "unsafe"
            drive = f"file={disk},if=none,id=disk{number},format={kind},cache={cache}{only}"
            command += ["-drive", drive]
        if incoming is not None:
            command += ["-incoming", f"exec:cat '{incoming}'"]
        self.process = subprocess.Popen(
            command, pass_fds=[end.fileno() for end in ends], stdin=subprocess.DEVNULL
        )
        for end in ends:
            end.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.wait()

    def follow(self, told: Callable[[str], bool], end: float) -> None:
        """Print the guest's output and hand each of its control lines to `told` until it is True.

        Raises TimeoutError at `end` (monotonic), BrokenError when QEMU ends.
        """
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            ready, _, _ = select.select([self.control, self.output], [], [], left)
            if self.output in ready and not self.print_output():
                raise BrokenError("QEMU ended")
            if self.control not in ready:
                continue
            data = self.control.recv(4096)
            if not data:
                raise BrokenError("QEMU ended")
            self._lines += data
            while b"\n" in self._lines:
                line, _, self._lines = self._lines.partition(b"\n")
                if told(line.decode(errors="replace")):
                    return

    def print_output(self) -> bool:
        """Pass on what the script has written; False at the end."""
        data = self.output.recv(1 << 16)
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return bool(data)

    def drain(self) -> None:
        """Pass on what has arrived already."""
        while select.select([self.output], [], [], 0)[0] and self.print_output():
            pass

    def save(self, file: Path) -> None:
        """Write the machine's state, after which it does not run on. Raises BrokenError."""
        self._command("qmp_capabilities")
        events = [{"capability": "events", "state": True}]
        self._command("migrate-set-capabilities", capabilities=events)
        self._command("migrate-set-parameters", **{"max-bandwidth": 1 << 34})
        self._command("migrate", uri=f"exec:cat > '{file}'")
        while True:
            event = self._message()
            status = event.get("data", {}).get("status")
            if event.get("event") == "MIGRATION" and status in {"completed", "failed"}:
                if status == "failed":
                    raise BrokenError("QEMU could not save the machine's state")
                return

    def _command(self, name: str, **values: Any) -> None:
        self._qmp.sendall(json.dumps({"execute": name, "arguments": values}).encode())
        while True:
            answer = self._message()
            if "error" in answer:
                raise BrokenError(f"QEMU: {name}: {answer['error']['desc']}")
            if "return" in answer:
                return

    def _message(self) -> dict[str, Any]:
        self._qmp.settimeout(BOOT_LIMIT_S)
        while b"\n" not in self._answers:
            data = self._qmp.recv(1 << 16)
            if not data:
                raise BrokenError("QEMU ended")
            self._answers += data
        line, _, self._answers = self._answers.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def arguments(boot: Path, disks: int = 3) -> list[str]:
    """QEMU's command line, but for files of one run."""
    machine = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"]
    machine += ["-accel", "tcg,thread=single,tb-size=512", "-cpu", "max,la57=off", "-smp", "1"]
    machine += ["-m", MEMORY, "-kernel", str(boot / "vmlinuz"), "-initrd", str(boot / "initrd")]
    machine += ["-append", KERNEL, "-rtc", "base=utc"]
    # restrict: the guest has a default route, which the kubelet wants, but it leads nowhere.
    machine += ["-netdev", "user,id=net,restrict=on"]
    machine += ["-device", "virtio-net-pci,netdev=net,romfile="]
    machine += ["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"]
    machine += ["-device", "virtserialport,chardev=control,nr=1"]
    machine += ["-device", "virtserialport,chardev=output,nr=2"]
    machine += ["-mon", "chardev=qmp,mode=control"]
    for number in range(disks):
        machine += ["-device", f"virtio-blk-pci,drive=disk{number}"]
    return machine


def saved_state(boot: Path, disks: int = 3) -> Path:
    """The directory with the state of a machine that has booted; makes it at the first time."""
    version = subprocess.run([QEMU, "--version"], capture_output=True, check=True).stdout
    facts = [*arguments(boot, disks), version.decode(), Path(__file__).read_text()]
    state = CACHE / f"vm-state-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
    if state.exists():
        os.utime(state)  # `prune` sees that it is in use
        return state
    with (CACHE / "vm-state.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if state.exists():
            return state
        new = state.with_suffix(".new")
        for attempt in range(1, BOOTS + 1):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                first_boot(boot, new, disks)
            except (BrokenError, TimeoutError) as failure:
                print(f"boot {attempt} of {BOOTS} failed: {failure!r}", file=sys.stderr)
                print_console(new / "console")
            else:
                new.rename(state)
                return state
    raise BrokenError("the VM does not boot")


def first_boot(boot: Path, new: Path, number: int) -> None:
    """Boot to the guest's "ready" and save the state."""
    start = time.monotonic()
    sizes = {**SIZES, "spare": SPARE_BYTES}
    for name, size in sizes.items():
        with (new / f"{name}.img").open("wb") as file:
            file.truncate(size)
    disks = [overlay(boot / "disk.img", new / "disk.qcow2")]
    disks += [new / f"{name}.img" for name in ("data", "payload", "spare")]
    with Machine(boot, disks[:number], new / "console", None) as machine:
        machine.follow(lambda line: line == "ready", start + BOOT_LIMIT_S)
        booted = time.monotonic()
        machine.save(new / "memory")
        saved = time.monotonic()
        note = f"VM booted in {booted - start:.1f} s, saved in {saved - booted:.1f} s"
        print(note, file=sys.stderr)
        (new / "times").write_text(note + "\n")
    for name in sizes:
        (new / f"{name}.img").unlink()


def overlay(below: Path, file: Path) -> Path:
    """A new disk image whose unwritten blocks are those of `below`."""
    kind = "qcow2" if below.suffix == ".qcow2" else "raw"
    command: list[str | Path] = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        below,
        "-F",
        kind,
        file,
    ]
    subprocess.run(command, check=True)
    return file


def run(boot: Path, work: Path, data: Path) -> int:
    """Go on from the saved state with the payload; its exit status."""
    state = saved_state(boot)
    start = time.monotonic()
    console = Path(os.environ.get("CRIAGENT_VM_CONSOLE") or work / "console")
    disks = [overlay(state / "disk.qcow2", work / "disk.qcow2"), data, work / "payload.img"]
    status = BROKEN
    announced = True
    with Machine(boot, disks, console, state / "memory") as machine:

        def go() -> None:
            machine.control.sendall(f"go {time.time():.3f}\n".encode())

        def told(line: str) -> bool:
            nonlocal status, announced
            word, _, rest = line.partition(" ")
            if word == "exit":
                status = int(rest)
                return True
            if word == "ready":
                if not announced:
                    raise BrokenError("the guest started anew without being asked to")
                announced = False
                go()
            announced = announced or word == "reboot"
            return False

        announced = False  # the saved state is past its first "ready"
        go()
        try:
            machine.follow(told, start + LIMIT_S)
            machine.drain()
        except TimeoutError:
            print(f"tests/vm/run: killed after {LIMIT_S:.0f} s", file=sys.stderr)
            print_console(console)
            return OUT_OF_TIME
        except BrokenError as failure:
            print(f"tests/vm/run: {failure}", file=sys.stderr)
            print_console(console)
    return status


def print_console(console: Path) -> None:
    """The last lines that the guest's kernel and systemd wrote."""
    if console.exists():
        lines = console.read_text(errors="replace").splitlines()[-20:]
        print("--- last lines of the console:", *lines, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(run(*map(Path, sys.argv[1:4])))
    except BrokenError as failure:
        sys.exit(f"tests/vm/run: {failure}")
