# SPDX-License-Identifier: Apache-2.0
"""The oldest versions of other programs that work, and those without known security problems.

A floor applies to one program. The version of another one (youki as a handler of type runc) is not
compared with it. Programs that have a type of their own are refused under another one.
"""

from __future__ import annotations

import re

from criagent.base.text import bounded

Version = tuple[int, int, int]

# kind: the version that introduced what the agent needs, and what that is
_NEEDED: dict[str, tuple[Version, str]] = {
    "conmon": ((2, 0, 23), "--full-attach"),
    "crun": ((1, 3, 0), "exec --cgroup"),
    "runc": ((1, 1, 0), "exec --cgroup"),
    "runsc": ((20260511, 0, 0), "update"),
}
# Below these the security advisories of the tools apply; one for each minor series.
FLOORS = {
    "crun": ("1.28",),
    "runc": ("1.3.6", "1.4.3", "1.5.0"),
    "conmon": ("2.1.2",),
    "cni": ("1.9.0",),
}
_KNOWN = ("crun", "runc", "runsc")  # programs with a type of their own
_PROGRAM_OF = {"wasm": "crun"}
_BROKEN = {("crun", (1, 29, 0))}
_NAMED = re.compile(r"^[\w.-]+ version\b", re.MULTILINE)
_SHOWN = 80  # characters of an answer
_VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\.(\d+))?")


def parse_version(text: str) -> Version | None:
    """The first version number in `text`."""
    match = _VERSION.search(text)
    if match is None:
        return None
    return int(match[1]), int(match[2]), int(match[3] or 0)


def version_of(kind: str, answer: str) -> Version | None:
    """The version in `answer`, the output of --version, if that is of the program `kind`; else
    None.
    """
    kind = _PROGRAM_OF.get(kind, kind)
    said = re.search(rf"^{kind} version:? (.*)", answer, re.MULTILINE)
    return None if said is None else parse_version(said[1])


def too_old(kind: str, answer: str) -> str:
    """Why the program with that --version output cannot be used; "" = it can, or has no version."""
    kind = _PROGRAM_OF.get(kind, kind)
    version = version_of(kind, answer)
    floor, reason = _NEEDED.get(kind, ((0, 0, 0), ""))
    if version is None or version >= floor:
        return ""
    return f"{kind} {dotted(version)} is too old: {reason} came with {dotted(floor)}"


def another_program(kind: str, answer: str) -> str:
    """Why the program with that --version output is not of the type `kind`, and the remedy; "" = it
    is. Of the type runc is any that gives itself a name, since others have its command line.
    """
    wanted = _PROGRAM_OF.get(kind, kind)
    for known in _KNOWN:
        if known != wanted and version_of(known, answer) is not None:
            return f'is {known}, and not of the type {kind}; set type = "{known}" for the handler'
    if kind == "wasm" and version_of(wanted, answer) is not None and "+WASM" not in answer:
        return "is a crun that was built without WebAssembly; install one with +WASM in its version"
    if kind == "runc" and _NAMED.search(answer):
        return ""
    return nameless(wanted, answer)


def nameless(program: str, answer: str) -> str:
    """Why that --version output is not the one of `program`, and the remedy; "" = it is."""
    if re.search(rf"^{program} version\b", answer, re.MULTILINE):
        return ""
    said = bounded(answer.strip().partition("\n")[0], _SHOWN)
    return f'is not {program}: its --version says "{said}"; set the path of {program}'


def insecure(kind: str, answer: str) -> str:
    """The known security problems of a program, and the versions without; "" = none.

    A distribution may have fixed them under an older number.
    """
    kind = _PROGRAM_OF.get(kind, kind)
    version = version_of(kind, answer)
    if version is None or kind not in FLOORS:
        return ""
    if not below_floor(version, FLOORS[kind]) and (kind, version) not in _BROKEN:
        return ""
    but = " (but not 1.29.0)" if kind == "crun" else ""
    return (
        f"{kind} {dotted(version)} has known security problems; they are fixed in "
        f"{' / '.join(FLOORS[kind])} or newer{but}"
    )


def below_floor(version: Version, floors: tuple[str, ...]) -> bool:
    """Whether no floor is met; a floor is for its own minor series, the last one for all newer."""
    parsed = [found for floor in floors if (found := parse_version(floor)) is not None]
    for floor in parsed[:-1]:
        if version[:2] == floor[:2]:
            return version < floor
    return version < parsed[-1]


def dotted(version: Version) -> str:
    """ "1.2.3"."""
    return ".".join(map(str, version))
