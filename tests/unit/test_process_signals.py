# SPDX-License-Identifier: Apache-2.0
"""Signals that do not end the daemon, and the dump of what it is doing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from criagent.process.signals import dump_stacks, install

SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """SIGHUP as a login gives it, also when nohup(1) runs the tests."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(autouse=True)
def handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_a_dump_has_every_thread_and_every_task_with_its_stack() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()

    async def stuck_in_a_pull() -> None:
        await inner()

    leave = threading.Event()
    thread = threading.Thread(target=leave.wait, name="stuck-file-thread")
    thread.start()
    task = asyncio.create_task(stuck_in_a_pull(), name="pull:web")
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    with capture_logs() as lines:
        await loop.run_in_executor(None, dump_stacks, loop, lambda: {"queues": {"db": 3}})
    leave.set()
    thread.join()
    task.cancel()
    threads = {line["thread"]: line["stack"] for line in lines if line["event"] == "thread_stack"}
    tasks = {line["task"]: line["stack"] for line in lines if line["event"] == "task_stack"}
    assert (lines[0]["event"], lines[0]["queues"]) == ("debug_state", {"db": 3})
    assert "MainThread" in threads
    assert any("wait" in frame for frame in threads["stuck-file-thread"])
    places = [place.rpartition(" ")[2] for place in tasks["pull:web"]]
    assert places[:3] == ["stuck_in_a_pull", "inner", "wait"]
    assert {line["log_level"] for line in lines} == {"warning"}


async def test_the_signals_are_survived_and_noted() -> None:
    install(asyncio.get_running_loop(), dict)
    before = threading.enumerate()
    with capture_logs() as lines:
        for number in (signal.SIGHUP, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        for thread in threading.enumerate():
            if thread not in before:
                thread.join(50)
    assert [(line["event"], line["signal"]) for line in lines] == [
        ("signal_ignored", "SIGHUP"),
        ("signal_ignored", "SIGUSR2"),
    ]
    assert "when it serves" in lines[0]["cure"]


def test_a_child_has_the_systems_own_handlers() -> None:
    with asyncio.Runner() as runner:
        install(runner.get_loop(), dict)
        command = ["grep", "-E", "Sig(Ign|Blk|Cgt)", "/proc/self/status"]
        done = subprocess.run(command, capture_output=True, check=True)
    masks = [int(line.split()[1], 16) for line in done.stdout.decode().splitlines()]
    for number in SIGNALS:
        assert not any(mask >> (number - 1) & 1 for mask in masks)


async def test_nohup_is_left_as_it_is() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    install(asyncio.get_running_loop(), dict)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_loop_that_is_held_up_is_dumped_all_the_same() -> None:
    program = """
import asyncio, os, signal, sys, threading
from criagent.telemetry import logs
from criagent.process.signals import install

async def main():
    install(asyncio.get_running_loop(), dict)
    held_up()

def held_up():
    os.kill(os.getpid(), signal.SIGUSR1)
    for thread in threading.enumerate():
        if thread.name == "stack-dump":
            thread.join()

logs.setup("info")
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True
    )
    assert '"thread_stack"' in done.stderr
    assert "held_up" in done.stderr
