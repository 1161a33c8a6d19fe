"""Child processes: started by vfork, awaited by pidfd, killed and reaped when their caller leaves.

Nothing is forked from the daemon itself (no preexec_fn), and no thread waits for a child. Orphans
are reaped when they end: what a runtime that detaches has started, or what a killed monitor leaves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from criagent.base.aio import finish
from criagent.kernel.process import become_subreaper


class Child:
    """A process of ours, started by `process` or adopted. Several tasks may await `wait`."""

    def __init__(self, pid: int, process: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self._process = process
        self._status = 0
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self.reap)
        _family.known[pid] = self

    @property
    def running(self) -> bool:
        """Whether it has not been reaped."""
        return self._pidfd >= 0

    async def wait(self) -> int:
        """Its exit status, negative for a signal, once it has ended."""
        await self._ended.wait()
        return self._status

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it, unless it is gone."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill_group(self) -> None:
        """SIGKILL to its process group, of which it must be the leader."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take the exit status of a process that has ended."""
        if self._process is not None:
            self._status = self._process.wait()
        else:
            found = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            if found is not None:
                exited = found.si_code == os.CLD_EXITED
                self._status = found.si_status if exited else -found.si_status
        del _family.known[self.pid]
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._ended.set()


class _Family:
    """The children of this process, which the kernel counts for the process, not for a loop."""

    def __init__(self) -> None:
        self.known: dict[int, Child] = {}
        self.expected = 0  # orphans that somebody is about to adopt

    def reap(self) -> None:
        """Reap whatever has ended."""
        while not self.expected:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            if (child := self.known.get(found.si_pid)) is not None:
                child.reap()
            else:
                os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)


_family = _Family()


def take_in_orphans() -> None:
    """From now on descendants whose parents end are children of ours, reaped when they end."""
    become_subreaper()
    asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, _family.reap)


class ExpectedOrphan:
    """An orphan that will be adopted: until then, no orphan is reaped that ends.

    Its exit status is kept by the kernel that way, and its pid stays its own. Needs
    `take_in_orphans`.
    """

    def __init__(self) -> None:
        self._open = True
        _family.expected += 1

    def adopt(self, pid: int) -> Child:
        """The orphan of that pid, which may have ended. Its parent must have ended."""
        child = Child(pid)
        self.release()
        return child

    def release(self) -> None:
        """Expect it no more; idempotent."""
        if self._open:
            self._open = False
            _family.expected -= 1
            _family.reap()


def spawn(
    argv: Sequence[str | Path],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
    stderr: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    new_session: bool = False,
) -> Child:
    """Start `argv`, with nothing of our environment but PATH unless `env` says otherwise.

    With DEVNULL its standard input is a pipe that has ended: /dev/null itself would be given to the
    user of a container by an OCI runtime that hands its input on (crun 1.21 does).
    Raises FileNotFoundError and the like when it cannot be executed.
    """
    ended = nothing_to_read() if stdin == subprocess.DEVNULL else -1
    try:
        process = subprocess.Popen(
            [str(word) for word in argv],
            stdin=stdin if ended < 0 else ended,
            stdout=stdout,
            stderr=stderr,
            pass_fds=tuple(pass_fds),
            env={"PATH": os.environ.get("PATH", os.defpath)} if env is None else dict(env),
            cwd=cwd,
            start_new_session=new_session,
        )
    finally:
        if ended >= 0:
            os.close(ended)
    return Child(process.pid, process)


def nothing_to_read() -> int:
    """A descriptor at whose end the reader is already."""
    read, write = os.pipe()
    os.close(write)
    return read


@asynccontextmanager
async def killed_on_exit(child: Child) -> AsyncIterator[Child]:
    """Kill and reap `child` when the block ends and it has not."""
    try:
        yield child
    finally:
        if child.running:
            child.kill()
            await finish(_reaped(child))


async def _reaped(child: Child) -> None:
    await child.wait()


class PipeReader:
    """Bytes of a pipe as they come, on the event loop; at most `limit` of them are kept."""

    def __init__(self, fd: int, *, limit: int) -> None:
        os.set_blocking(fd, False)
        self.data = bytearray()
        self.dropped = 0
        self._fd = fd
        self._limit = limit
        self._ended = asyncio.Event()
        self._more = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            chunk = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return
        kept = self._admitted(len(chunk))
        self.data += chunk[:kept]
        self.dropped += len(chunk) - kept
        self._more.set()

    def _admitted(self, count: int) -> int:
        """How many of the next `count` bytes are kept; none after one was dropped."""
        return 0 if self.dropped else max(min(count, self._limit - len(self.data)), 0)

    def drain(self) -> None:
        """Read what is there now, without waiting for the loop to say so."""
        before = -1
        while self._fd >= 0 and before != len(self.data) + self.dropped:
            before = len(self.data) + self.dropped
            self._readable()

    async def line(self) -> bytes | None:
        """The first line without its newline, taken out of `data`; None when the pipe ends."""
        while b"\n" not in self.data:
            if self._ended.is_set():
                return None
            self._more.clear()
            await self._more.wait()
        line, _, rest = bytes(self.data).partition(b"\n")
        self.data[:] = rest
        return line

    async def ended(self) -> None:
        """Return at the end of the pipe."""
        await self._ended.wait()

    def close(self) -> None:
        """Stop reading and close the descriptor; idempotent."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._ended.set()
            self._more.set()
