"""Child processes: what they inherit, how they end, and pipes that are read with a bound."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from criagent.kernel.process import alive, process_ref
from criagent.model.common import ProcessRef
from criagent.process.child import Child, PipeReader, killed_on_exit, spawn

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
    return {
        fd for fd in map(int, os.listdir("/proc/self/fd")) if Path(f"/proc/self/fd/{fd}").exists()
    }


def children() -> str:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


@pytest_asyncio.fixture(autouse=True)
async def no_descriptor_is_left() -> AsyncIterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before


async def said(*argv: str, **options: object) -> tuple[int, str]:
    """Status and standard output of a command."""
    read, write = os.pipe()
    reader = PipeReader(read, limit=1 << 16)
    try:
        child = spawn(argv, stdout=write, **options)  # type: ignore[arg-type]
    finally:
        os.close(write)
    await reader.ended()
    return await child.wait(), reader.data.decode()


async def test_a_child_inherits_no_descriptor_but_those_it_is_given() -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)  # even one that a library left inheritable
    try:
        script = "ls /proc/self/fd | tr '\\n' ' '"
        assert (await said("sh", "-c", script))[1].split() == ["0", "1", "2", "3"]  # 3: of ls
        _, found = await said("sh", "-c", script, pass_fds=(read,))
        assert str(read) in found.split()
    finally:
        os.close(read)
        os.close(write)


async def test_a_child_has_nothing_of_our_environment_but_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "s3cret")
    _, found = await said("env")
    assert found == f"PATH={os.environ['PATH']}\n"
    _, found = await said("env", env={"A": "b"})
    assert found == "A=b\n"


async def test_standard_input_has_ended_and_is_not_dev_null() -> None:
    _, found = await said("sh", "-c", "cat; readlink /proc/self/fd/0")
    assert found.startswith("pipe:")


async def test_directory_and_session_are_as_asked(tmp_path: Path) -> None:
    _, found = await said("pwd", cwd=tmp_path)
    assert found == f"{tmp_path}\n"
    child = spawn(SLEEP, new_session=True)
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
    assert await asyncio.gather(child.wait(), child.wait()) == [status, status]
    assert await child.wait() == status
    assert not child.running


async def test_signals_to_a_child_that_is_gone_do_nothing() -> None:
    child = spawn(["true"], new_session=True)
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


async def test_a_pipe_is_read_to_its_end_and_kept_up_to_the_limit() -> None:
    read, write = os.pipe()
    reader = PipeReader(read, limit=1000)
    child = spawn(["head", "-c", "300000", "/dev/zero"], stdout=write)
    os.close(write)
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
