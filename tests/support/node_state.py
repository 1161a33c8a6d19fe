# SPDX-License-Identifier: Apache-2.0
"""Everything that pods and images leave in a node when something leaks."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
from pathlib import Path

from criagent._proto import admin_pb2, admin_pb2_grpc
from tests.support.cri_client import Cri, api
from tests.support.waiting import until

RUN, ROOT = Path("/run/criagent"), Path("/var/lib/criagent")
_PROGRAMS = {"conmon", "crun", "runc", "catatonit", "sleep", "httpd", "cat"}
_LAYER = re.compile(rf"{ROOT}/snapshots/\d+/mnt")  # of erofs: mounted on first use, until removed
# The database, and crun's cache of compiled seccomp filters, which it bounds itself.
_NOT_COMPARED = re.compile(r"state\.(db|reserve).*|lock|\.cache")


def node_state() -> dict[str, list[str]]:
    """Facts by kind, sorted, so that a difference reads well."""
    return {
        "mounts": sorted(
            " ".join(line.split(" ")[3:5])
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if not _LAYER.fullmatch(line.split(" ")[4])
        ),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "nftables": _output("nft", "list", "ruleset"),
        "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").rglob("*") if path.is_dir()),
        "processes": _processes(),
        "addresses": _addresses(),
        "files": sorted(str(path) for top in (RUN, ROOT) for path in _below(top)),
    }


def settled_state(cri: Cri) -> dict[str, list[str]]:
    """The state once removed files are deleted in the background, and links of pods that have ended
    are gone with their rules and addresses; those that are not gone after a while are in it.
    """
    admin_pb2_grpc.AdminStub(cri.channel).Prune(admin_pb2.PruneRequest(), timeout=60)
    ready = {pod.id for pod in cri.pods() if pod.state == api.SANDBOX_READY}
    with contextlib.suppress(AssertionError):
        until(lambda: address_owners() <= ready, "the release of addresses", limit_s=10)
    return node_state()


def differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> str:
    """What is more and what is less, a line each; "" for equal states."""
    lines = []
    for kind, old in before.items():
        new = after[kind]
        lines += [f"{kind}: + {item}" for item in new if item not in old]
        lines += [f"{kind}: - {item}" for item in old if item not in new]
        if not lines and sorted(old) != sorted(new):
            lines.append(f"{kind}: the same things, in other numbers")
    return "\n".join(lines)


def agent_pid() -> int:
    """The pid of the agent that `tests/nodes/chroot/agent` started."""
    return int(Path("/run/criagent.pid").read_text())


def monitor_pid(container_id: str) -> int:
    """conmon of a container."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if words[0].endswith(b"conmon") and container_id.encode() in words:
            return int(entry.parent.name)
    raise AssertionError(f"no monitor of {container_id}")


def agent_facts() -> dict[str, int]:
    """Descriptors, threads and resident kilobytes of the agent."""
    process = Path(f"/proc/{agent_pid()}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    return {
        "fds": len(list((process / "fd").iterdir())),
        "threads": int(status["Threads"]),
        "rss_kb": int(status["VmRSS"].split()[0]),
    }


def _below(top: Path) -> list[Path]:
    found: list[Path] = []
    for path in top.iterdir() if top.is_dir() else ():
        if _NOT_COMPARED.fullmatch(path.name):
            continue
        found.append(path)
        if _LAYER.fullmatch(str(path)):
            continue
        # Content of mounted root file systems is the container's, and layers are named by number.
        if path.is_dir() and not path.is_symlink() and path.name not in {"rootfs", "fs", "shm"}:
            found += _below(path)
    return found


def _processes() -> list[str]:
    names = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "comm").read_text().strip()
                dead = " Z " in (entry / "stat").read_text()
            except OSError:
                continue
            if name in _PROGRAMS and entry.name != "1" and not dead:
                names.append(name)
    return sorted(names)


def address_owners() -> set[str]:
    """Sandboxes that have addresses of the built-in network."""
    return set(_addresses("sandbox_id"))


def _addresses(column: str = "address") -> list[str]:
    connection = sqlite3.connect(f"file:{ROOT}/state.db?mode=ro", uri=True)
    try:
        return sorted(row[0] for row in connection.execute(f"SELECT {column} FROM addresses"))
    finally:
        connection.close()


def _output(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sorted(done.stdout.splitlines())
