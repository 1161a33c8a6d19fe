# SPDX-License-Identifier: Apache-2.0
"""Logs through the kubelet's own port, and their rotation."""

from __future__ import annotations

import gzip
from pathlib import Path

from tests.support.kubelet_node import LIMIT_S, NODE, Kubelet, ground, ids, restarts, shell, until


def test_logs_are_read_through_the_kubelet(kubelet: Kubelet) -> None:
    script = "echo one; echo two; [ -e /dev/shm/end ] || { touch /dev/shm/end; exit 1; }; "
    script += "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done"
    kubelet.add("reader", {"containers": [shell("main", script)]})
    kubelet.until("reader", lambda pod: restarts(pod).get("main", 0) == 1, "a restart")
    kubelet.until_ready("reader")
    assert kubelet.logs("reader", "main", "previous=true") == "one\ntwo\n"
    until(lambda: "line 3\n" in kubelet.logs("reader", "main"), "three lines", LIMIT_S)
    assert kubelet.logs("reader", "main").startswith("one\ntwo\nline 1\nline 2\n")
    assert len(kubelet.logs("reader", "main", "tailLines=2").splitlines()) == 2
    stamped = kubelet.logs("reader", "main", "timestamps=true&tailLines=1")
    assert stamped.split(" ", 1)[1].startswith("line ")
    with kubelet.secure(
        f"/containerLogs/default/reader-{NODE}/main?follow=true&tailLines=1"
    ) as log:
        first, second = (int(log.readline().split()[1]) for _ in range(2))
    assert second == first + 1
    with kubelet.secure(f"/run/default/reader-{NODE}/main?cmd=echo+hello", "POST") as answer:
        assert answer.read() == b"hello\n"


def test_rotated_logs_miss_no_line_though_the_agent_is_killed(kubelet: Kubelet) -> None:
    line = "x" * 200
    loop = f"i=0; while :; do i=$((i+1)); echo $i {line}; [ $((i % 50)) != 0 ] || sleep 0.1; done"
    kubelet.add("talker", {"containers": [shell("talker", loop)]})
    pod = kubelet.until_ready("talker")
    directory = Path(f"/var/log/pods/default_talker-{NODE}_{pod['metadata']['uid']}/talker")
    rotated: set[str] = set()

    def more(count: int) -> bool:
        rotated.update(path.name.removesuffix(".gz") for path in directory.glob("0.log.2*"))
        return len({name for name in rotated if not name.endswith(".tmp")}) >= count

    until(lambda: more(2), "two rotations", LIMIT_S)
    for count in (3, 4):
        ground.kill_agent()
        until(lambda count=count: more(count), "another rotation", LIMIT_S)
    assert restarts(kubelet.until_ready("talker")) == {"talker": 0}
    numbers = _numbers(directory)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert ids(kubelet.until_ready("talker")) == ids(pod)
    kubelet.remove("talker")


def _numbers(directory: Path) -> list[int]:
    """The first words of the lines in its rotated logs, a line in pieces put together."""
    text = ""
    for path in sorted(directory.glob("0.log.2*")):
        packed = path.suffix == ".gz"
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        for entry in content.decode().splitlines():
            _, _, tag, piece = entry.split(" ", 3)
            text += piece + "\n" * (tag == "F")
    return [int(line.split()[0]) for line in text.splitlines()[1:]]  # the first may be a rest
