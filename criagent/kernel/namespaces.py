"""Namespaces: made, entered and pinned in threads that end afterwards.

A thread that has changed its namespace never returns to a pool. Synchronous, no policy.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_int
from pathlib import Path
from typing import TypeVar

from criagent.kernel import mount
from criagent.kernel.syscalls import check, libc

T = TypeVar("T")

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

_FLAGS = {"net": CLONE_NEWNET, "ipc": CLONE_NEWIPC, "uts": CLONE_NEWUTS}
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def unshare(flags: int) -> None:
    """unshare(2) of the calling thread."""
    check(libc.unshare(c_int(flags)), "unshare")


def setns(fd: int, nstype: int) -> None:
    """setns(2) of the calling thread."""
    check(libc.setns(c_int(fd), c_int(nstype)), "setns")


def in_thread(call: Callable[[], T]) -> T:
    """Run `call` in a thread of its own, wait for its end, return or raise what it did."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(exc)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def in_netns(path: Path, call: Callable[[], T]) -> T:
    """Run `call` inside the network namespace pinned at `path`."""

    def run() -> T:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd, CLONE_NEWNET)
        finally:
            os.close(fd)
        return call()

    return in_thread(run)


def in_each_netns(paths: Sequence[Path], call: Callable[[], T]) -> list[T | None]:
    """Run `call` inside each of the network namespaces pinned at `paths`, in one thread.

    None stands for a namespace that is gone.
    """

    def enter(path: Path) -> T | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                setns(fd, CLONE_NEWNET)
            finally:
                os.close(fd)
            return call()
        except OSError:
            return None

    return in_thread(lambda: [enter(path) for path in paths]) if paths else []


def pin_namespaces(
    targets: Mapping[str, Path], *, sysctls: Mapping[str, str], hostname: str | None
) -> None:
    """Make the namespaces named by `targets` ("net", "ipc", "uts") and pin each at its path.

    Inside, lo is up, `hostname` and `sysctls` (dotted names) are set. The caller has validated
    them. On failure some pins may exist; `unpin` is the undo.
    """

    def run() -> None:
        unshare(sum(_FLAGS[kind] for kind in targets))
        if hostname is not None:
            socket.sethostname(hostname)
        for name, value in sysctls.items():
            _write_sysctl(name, value)
        if "net" in targets:
            link_up("lo")
        for kind, target in targets.items():
            target.touch(mode=0o600)
            mount.mount(f"/proc/thread-self/ns/{kind}", target, flags=mount.MS_BIND)

    in_thread(run)


def unpin(target: Path) -> None:
    """Take the pin away; nothing happens when there is none.

    Unlinking detaches it in other mount namespaces too, where umount2 does not reach.
    """
    mount.detach(target)
    target.unlink(missing_ok=True)


def is_pinned(target: Path) -> bool:
    """Whether a namespace is bound at `target` (as opposed to the empty file below it)."""
    try:
        return os.stat(target).st_dev == os.stat("/proc/self/ns/net").st_dev
    except FileNotFoundError:
        return False


def link_up(name: str) -> None:
    """Bring an interface of this thread's network namespace up (man 7 netdevice)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sh14x", name.encode(), 0)
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", answer, 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", name.encode(), flags | _IFF_UP))


def _write_sysctl(name: str, value: str) -> None:
    # A slash stands for a dot within a part, as in net.ipv4.conf.eth0/100.forwarding.
    path = Path("/proc/sys", *(part.replace("/", ".") for part in name.split(".")))
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as exc:
        exc.filename = str(path)
        raise
    finally:
        os.close(fd)
