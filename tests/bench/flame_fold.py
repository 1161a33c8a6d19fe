# SPDX-License-Identifier: Apache-2.0
"""Samples of two profilers as one tree of CPU time: who used it, from the outermost call inwards.

Pure. perf(1) sees the kernel and every process that the agent starts, but no functions of Python.
py-spy sees these: its samples of the thread that holds Python's lock divide the time that perf has
found in the agent outside of the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

AGENT = "criagent"
_HEAD = re.compile(r"^(?P<comm>\S.*?)\s+(?P<pid>\d+)/\d+\s*$")
_FRAME = re.compile(r"^\s+[0-9a-f]+ (?P<symbol>.+?) \((?P<dso>.*)\)$")
_KERNEL = "[kernel.kallsyms]"
_ENTRIES = {"entry_SYSCALL_64_after_hwframe", "do_syscall_64", "asm_exc_page_fault"}
_SYSCALL = re.compile(r"^(?:__(?:x64|arm64|do|se)_sys_|ksys_)")
_PYTHON = re.compile(r"^(?P<function>.+) \((?P<file>[^()]*?)(?::\d+)?\)$")
# Frames that say where a thread waits for work; what it then does lies within them.
_DISPATCH = {
    "BaseEventLoop._run_once",
    "Handle._run",
    "_WorkItem.run",
    "_fulfil",
    "in_thread.<locals>.run",
}
_THREADS = {"db": "database thread", "net": "network thread", "fs": "file threads"}
# They hold the lock while another process runs.
_WAITS = ("Popen._posix_spawn", "Popen._execute_child")


@dataclass(slots=True)
class Frame:
    """A function, or the process at the root, with its CPU time and what it calls."""

    name: str
    value: float = 0.0
    within: dict[str, Frame] = field(default_factory=dict)

    def add(self, path: Iterable[str], value: float) -> None:
        """Count `value` for this frame and each of `path` below it."""
        self.value += value
        frame = self
        for name in path:
            frame = frame.within.setdefault(name, Frame(name))
            frame.value += value


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of perf: the process, and its frames (symbol, object) from the innermost on."""

    comm: str
    pid: int
    frames: list[tuple[str, str]]


def samples(text: str) -> Iterator[Sample]:
    """Those in the output of `perf script -F comm,pid,tid,ip,sym,dso`."""
    for block in text.split("\n\n"):
        head, *rest = block.strip("\n").splitlines() or [""]
        if (found := _HEAD.match(head.strip())) is None:
            continue
        matches = (_FRAME.match(line) for line in rest)
        frames = [(match["symbol"], match["dso"]) for match in matches if match is not None]
        yield Sample(found["comm"], int(found["pid"]), frames)


def folded(perf: str, spy: str, agent: int, ms_per_sample: float) -> Frame:
    """The tree of both, in milliseconds for one pod; `agent` is the agent's pid in perf's output,
    `spy` what `py-spy record --format raw --threads --gil` has written.
    """
    root = Frame("one pod up")
    python = 0.0
    for sample in samples(perf):
        kernel = kernel_path(sample.frames)
        if sample.pid != agent:
            outside = [] if kernel else [_object(sample.frames)]
            root.add([_program(sample.comm), *kernel, *outside], ms_per_sample)
        elif kernel:
            root.add([AGENT, *kernel], ms_per_sample)
        elif sample.comm.startswith("event_engine"):
            root.add([AGENT, "gRPC's own threads"], ms_per_sample)
        else:
            python += ms_per_sample
    stacks = [(path, count) for path, count in python_stacks(spy) if path]
    total = sum(count for _, count in stacks)
    for path, count in stacks:
        root.add([AGENT, *path], python * count / total)
    return root


def kernel_path(frames: list[tuple[str, str]]) -> list[str]:
    """Functions of the kernel from the outermost on, the system call first; [] outside of it."""
    names = [symbol for symbol, dso in frames if dso == _KERNEL]
    names = [name for name in reversed(names) if name not in _ENTRIES]
    if not names:
        return []
    if _SYSCALL.match(names[0]):
        names[0] = _SYSCALL.sub("", names[0]) + "(2)"
    return ["kernel", *names[:8]]


def python_stacks(raw: str) -> Iterator[tuple[list[str], int]]:
    """Each stack of py-spy's raw format, from the outermost frame that says what is done."""
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        thread, *frames = stack.split(";")
        names = [_function(frame) for frame in frames]
        if not names or names[-1].startswith(_WAITS):
            continue
        start = max((n for n, name in enumerate(names) if _plain(name) in _DISPATCH), default=-1)
        name = thread.rpartition(": ")[2].split("_")[0]
        where = _THREADS.get(name, "namespace threads" if name == "namespace" else "event loop")
        yield [where, *(names[start + 1 :] or ["between two steps"])], int(count)


def _function(frame: str) -> str:
    """A frame as `function (module)`, without its line."""
    found = _PYTHON.match(frame)
    if found is None:
        return frame
    return f"{found['function']} ({found['file'].removesuffix('.py')})"


def _plain(name: str) -> str:
    return name.partition(" (")[0]


def _program(comm: str) -> str:
    """A process that the agent has started; an OCI runtime is executed from a descriptor, whose
    number is its name.
    """
    if comm.isdigit():
        return "crun"
    return comm if comm == "conmon" else "the container, and children before execve"


def _object(frames: list[tuple[str, str]]) -> str:
    return frames[0][1].rpartition("/")[2].removesuffix(" (deleted)") if frames else "unknown"
