"""The oldest versions of other programs that the agent can work with."""

from __future__ import annotations

import re

Version = tuple[int, int, int]

# kind: the version that brought what the agent relies on, and what that is
_NEEDED: dict[str, tuple[Version, str]] = {
    "conmon": ((2, 0, 23), "--full-attach"),
    "crun": ((1, 3, 0), "exec --cgroup"),
    "runc": ((1, 1, 0), "exec --cgroup"),
}
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


def parse_version(text: str) -> Version | None:
    """The first version number in `text`."""
    match = _VERSION.search(text)
    if match is None:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0)


def too_old(kind: str, answer: str) -> str:
    """Why a program that says `answer` to --version cannot be used; "" = it can, or tells none."""
    version = parse_version(answer)
    floor, reason = _NEEDED.get(kind, ((0, 0, 0), ""))
    if version is None or version >= floor:
        return ""
    return f"{kind} {dotted(version)} is too old: {reason} came with {dotted(floor)}"


def dotted(version: Version) -> str:
    """ "1.2.3"."""
    return ".".join(map(str, version))
