# SPDX-License-Identifier: Apache-2.0
"""Child processes: a run to its end, what a child inherits, how it ends, and its pipes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import select
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criagent.kernel.process import alive, process_ref
from criagent.model.common import ProcessRef
from criagent.process.child import Child, Options, Pipes, killed_on_exit, run, spawn
from criagent.process.pipe_ends import PipeReader, PipeWriter, up_to

SLEEP = ["sleep", "1000"]


@pytest_asyncio.fixture
async def output() -> AsyncIterator[tuple[PipeReader, int]]:
    """A reader that keeps 64 KiB, and the end to write to."""
    read, write = os.pipe()
    reader = PipeReader(read, limit=1 << 16)
    yield reader, write
    reader.close()
    if write in descriptors():
        os.close(write)


def descriptors() -> set[int]:
    """Open pipes and pidfds: what children cost. Threads of other tests' servers open the rest."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink().name.startswith(("pipe:", "anon_inode:[pidfd]")):
                found.add(int(link.name))
    return found


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest_asyncio.fixture(autouse=True)
async def no_descriptor_is_left() -> AsyncIterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


async def said(*argv: str, options: Options | None = None) -> str:
    """Standard output of a command that succeeds."""
    ended = await run(argv, limit_s=20, options=options or Options())
    assert (ended.status, ended.errors) == (0, "")
    return ended.output


def wait_until_gone(pid: int) -> None:
    """Return when the process has ended; an orphan is not ours to reap."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 20)[0]
    finally:
        os.close(fd)


# Run


async def test_a_run_returns_status_and_both_streams() -> None:
    ended = await run(["sh", "-c", "echo out; echo err >&2; exit 7"], limit_s=20)
    assert (ended.status, ended.stdout, ended.stderr) == (7, b"out\n", b"err\n")
    ended = await run(["printf", r"\377"], limit_s=20)
    assert (ended.stdout, ended.output) == (b"\xff", "\ufffd")


async def test_a_run_that_a_signal_ended_says_which() -> None:
    assert (await run(["sh", "-c", "kill -KILL $$"], limit_s=20)).status == -signal.SIGKILL


async def test_a_run_reads_its_input_of_any_size_to_the_end() -> None:
    data = bytes(range(256)) * 4096
    assert (await run(["cat"], stdin=data, limit_s=20, keep=len(data))).stdout == data
    assert (await run(["cat"], limit_s=20)).stdout == b""


async def test_a_mebibyte_of_input_holds_up_nobody_who_does_not_read_it() -> None:
    assert (await run(["true"], stdin=bytes(1 << 20), limit_s=20)).status == 0


async def test_the_beginning_of_a_long_output_is_kept_and_nobody_is_held_up() -> None:
    script = "head -c 300000 /dev/zero; head -c 200000 /dev/zero >&2; echo end"
    ended = await run(["sh", "-c", script], limit_s=20, keep=1000)
    assert (ended.status, ended.stdout, ended.stderr) == (0, bytes(1000), bytes(1000))


async def test_a_process_that_outlives_a_run_holds_neither_it_nor_a_pipe() -> None:
    ended = await run(["sh", "-c", "sleep 1000 & echo $!"], limit_s=20)
    assert ended.status == 0
    os.kill(int(ended.output), signal.SIGKILL)
    wait_until_gone(int(ended.output))


async def test_a_process_that_goes_on_writing_after_a_run_meets_a_closed_pipe() -> None:
    ended = await run(["sh", "-c", "yes & echo $! >&2"], limit_s=20, keep=10)
    assert ended.stdout in {b"", b"y\n" * 5}
    wait_until_gone(int(ended.errors))


async def test_a_run_over_its_limit_is_killed_and_reaped(tmp_path: Path) -> None:
    mine = tmp_path / "pid"
    others = children()
    with pytest.raises(TimeoutError):
        await run(["sh", "-c", f"echo $$ > {mine}; exec sleep 1000"], limit_s=0.2)
    assert process_ref(int(mine.read_text())) is None
    assert children() == others


@pytest.mark.parametrize("times", [1, 2])
async def test_a_run_whose_caller_is_cancelled_is_killed_and_reaped(times: int) -> None:
    others = children()
    task = asyncio.create_task(run(SLEEP, limit_s=None))
    for _ in range(times):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == others


@pytest.mark.parametrize("session", [True, False])
async def test_only_a_session_of_its_own_is_killed_as_a_whole(
    tmp_path: Path, session: bool
) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! > {pids}; wait"
    options = Options(new_session=session)
    with pytest.raises(TimeoutError):
        await run(["sh", "-c", script], limit_s=0.3, options=options)
    below = int(pids.read_text())
    found = process_ref(below)
    if not session:
        assert found is not None
        assert alive(found)
        os.kill(below, signal.SIGKILL)
    wait_until_gone(below)


async def test_a_run_that_cannot_be_executed_leaves_nothing(tmp_path: Path) -> None:
    before, others = descriptors(), children()
    with pytest.raises(FileNotFoundError, match="absent"):
        await run([tmp_path / "absent"], stdin=b"x", limit_s=20)
    assert (descriptors(), children()) == (before, others)


async def test_a_run_without_descriptors_leaves_nothing() -> None:
    """Each pipe in turn is the one that cannot be made; the interpreter has its own few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before, failed = descriptors(), 0
    free = [fd for fd in range(1000) if not Path(f"/proc/self/fd/{fd}").exists()]
    for more in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[more], hard))
        try:
            await run(["true"], stdin=b"x", limit_s=20)
        except OSError as exc:
            failed += 1
            assert exc.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert descriptors() == before
    assert 5 <= failed < 12


# What a child inherits


async def test_a_child_inherits_no_descriptor_but_those_it_is_given() -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)  # even one that a library left inheritable
    try:
        script = "ls /proc/self/fd | tr '\\n' ' '"
        assert (await said("sh", "-c", script)).split() == ["0", "1", "2", "3"]  # 3: of ls
    finally:
        os.close(read)
        os.close(write)


async def test_a_child_has_nothing_of_our_environment_but_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "s3cret")
    assert await said("env") == f"PATH={os.environ['PATH']}\n"
    assert await said("env", options=Options(env={"A": "b"})) == "A=b\n"


async def test_standard_input_has_ended_and_is_not_dev_null() -> None:
    found = await said("sh", "-c", "cat; readlink /proc/self/fd/0")
    assert found.startswith("pipe:")


async def test_streams_without_a_pipe_are_dev_null(tmp_path: Path) -> None:
    script = f'found=$(readlink /proc/$$/fd/[12]); echo "$found" > {tmp_path}/fds'
    assert await spawn(["sh", "-c", script]).wait() == 0
    assert (tmp_path / "fds").read_text() == "/dev/null\n" * 2


async def test_errors_go_where_ours_go_if_asked_for(tmp_path: Path) -> None:
    script = f"readlink /proc/$$/fd/2 > {tmp_path}/fd"
    await spawn(["sh", "-c", script], options=Options(inherit_stderr=True)).wait()
    assert (tmp_path / "fd").read_text().strip() == os.readlink("/proc/self/fd/2")


async def test_directory_and_session_are_as_asked(tmp_path: Path) -> None:
    assert await said("pwd", options=Options(cwd=tmp_path)) == f"{tmp_path}\n"
    child = spawn(SLEEP, options=Options(new_session=True))
    assert os.getsid(child.pid) == child.pid
    child.kill_group()
    assert await child.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("made", "number"), [("", errno.ENOENT), ("text", errno.ENOEXEC), ("plain", errno.EACCES)]
)
async def test_what_cannot_be_executed_is_an_oserror_and_leaves_nothing(
    made: str, number: int, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    if made:
        program.write_text("no program")
        program.chmod(0o755 if made == "text" else 0o644)
    before, others = descriptors(), children()
    with pytest.raises(OSError, match=str(program)) as caught:
        spawn([program])
    assert caught.value.errno == number
    assert descriptors() == before
    assert children() == others


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -TERM $$", -15)])
async def test_several_tasks_wait_for_one_end(script: str, status: int) -> None:
    child = spawn(["sh", "-c", script])
    assert list(await asyncio.gather(child.wait(), child.wait())) == [status, status]
    assert await child.wait() == status
    assert not child.running


async def test_signals_to_a_child_that_is_gone_do_nothing() -> None:
    child = spawn(["true"], options=Options(new_session=True))
    await child.wait()
    child.kill()
    child.kill_group()


def running(child: Child) -> ProcessRef:
    found = process_ref(child.pid)
    assert found is not None
    return found


@pytest.mark.parametrize("ending", [None, ValueError("x"), asyncio.CancelledError()])
async def test_a_child_is_killed_and_reaped_when_its_block_ends(
    ending: BaseException | None,
) -> None:
    child = spawn(["sh", "-c", "trap '' TERM; sleep 1000 & wait"])
    process = running(child)

    async def block() -> None:
        async with killed_on_exit(child):
            if ending is not None:
                raise ending

    await asyncio.gather(block(), return_exceptions=True)
    assert not child.running
    assert not alive(process)
    assert await child.wait() == -signal.SIGKILL


async def test_a_limit_over_a_child_kills_it() -> None:
    child = spawn(SLEEP)
    process = running(child)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), killed_on_exit(child):
            await child.wait()
    assert not alive(process)


async def test_a_caller_that_is_cancelled_twice_still_reaps() -> None:
    child = spawn(SLEEP)

    async def block() -> None:
        async with killed_on_exit(child):
            await child.wait()

    task = asyncio.create_task(block())
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not child.running


async def test_a_child_that_ended_by_itself_keeps_its_status() -> None:
    child = spawn(["sh", "-c", "exit 3"])
    async with killed_on_exit(child):
        await child.wait()
    assert await child.wait() == 3


# Pipes


async def test_a_child_that_gives_and_takes() -> None:
    script = """read line <&0; echo "out $line"; echo "err $line" >&2; echo "more $line" >&$1"""
    with Pipes() as pipes:
        requests = pipes.input(PipeWriter)
        output, errors = pipes.output(up_to(100)), pipes.errors(up_to(100))
        more, number = pipes.numbered(up_to(100))
        child = spawn(["bash", "-c", script, "sh", str(number)], pipes)
        async with killed_on_exit(child):
            requests.write(b"x\n")
            assert await output.line() == b"out x"
            assert await errors.line() == b"err x"
            assert await more.line() == b"more x"
            assert await more.line() is None
            assert await child.wait() == 0


async def test_the_end_of_our_side_is_the_end_of_its_input() -> None:
    with Pipes() as pipes:
        requests = pipes.input(PipeWriter)
        child = spawn(["cat"], pipes)
        requests.close()
        assert await child.wait() == 0


async def test_pipes_of_a_child_that_cannot_be_executed_are_closed(tmp_path: Path) -> None:
    with Pipes() as pipes:
        reader = pipes.output(up_to(100))
        with pytest.raises(FileNotFoundError):
            spawn([tmp_path / "absent"], pipes)
        assert await reader.line() is None  # nobody can write to it


async def test_an_end_that_cannot_be_made_leaves_no_pipe() -> None:
    def end(fd: int) -> PipeReader:
        raise ValueError(fd)

    with Pipes() as pipes:
        pipes.output(up_to(100))
        with pytest.raises(ValueError, match=r"\d"):
            pipes.errors(end)


async def test_a_writer_says_when_a_pipe_is_full_or_nobody_reads() -> None:
    with Pipes() as pipes:
        writer = pipes.input(PipeWriter)
        with pytest.raises(BlockingIOError):
            writer.write(bytes(100_000))
    with Pipes() as pipes:
        writer = pipes.input(PipeWriter)
        writer.enlarge(1 << 20)
        writer.write(bytes(1 << 20))
        pipes.close_child_ends()
        with pytest.raises(BrokenPipeError):
            writer.write(b"x")


async def test_a_pipe_is_read_to_its_end_and_kept_up_to_the_limit() -> None:
    with Pipes() as pipes:
        reader = pipes.output(up_to(1000))
        child = spawn(["head", "-c", "300000", "/dev/zero"], pipes)
        await reader.ended()
        assert await child.wait() == 0  # not held up by a reader that keeps no more
        assert (len(reader.data), reader.dropped) == (1000, 299_000)


async def test_lines_come_one_by_one_then_none(output: tuple[PipeReader, int]) -> None:
    reader, write = output
    os.write(write, b"one\ntwo\nre")
    assert [await reader.line(), await reader.line()] == [b"one", b"two"]
    waiting = asyncio.create_task(reader.line())
    await asyncio.sleep(0)
    os.write(write, b"st\n")
    assert await waiting == b"rest"
    os.close(write)
    assert await reader.line() is None


async def test_a_rest_without_a_newline_is_no_line_but_is_kept(
    output: tuple[PipeReader, int],
) -> None:
    reader, write = output
    os.write(write, b"unfinished")
    os.close(write)
    assert await reader.line() is None
    assert reader.data == b"unfinished"


async def test_drain_takes_what_is_there_at_once(output: tuple[PipeReader, int]) -> None:
    reader, write = output
    os.write(write, b"x" * 60_000)
    reader.drain()
    assert len(reader.data) == 60_000
    reader.drain()
    os.close(write)
    reader.drain()
    await reader.ended()


async def test_drain_leaves_what_is_written_meanwhile() -> None:
    """Else a process that writes faster than it is read would hold the event loop."""
    read, write = os.pipe()

    class Refilled(PipeReader):
        def _admitted(self, count: int) -> int:
            if self.dropped < 100:  # lest the test does not end
                os.write(write, b"y")
            return super()._admitted(count)

    reader = Refilled(read, limit=0)
    os.write(write, b"x" * 10)
    reader.drain()
    assert reader.dropped == 10
    reader.close()
    os.close(write)


async def test_closing_ends_the_waiting_and_can_be_repeated(
    output: tuple[PipeReader, int],
) -> None:
    reader, _ = output
    waiting = asyncio.create_task(reader.line())
    await asyncio.sleep(0)
    reader.close()
    reader.close()
    reader.drain()
    assert await waiting is None
    await reader.ended()
