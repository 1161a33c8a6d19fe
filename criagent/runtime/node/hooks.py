# SPDX-License-Identifier: Apache-2.0
"""The directories of OCI hooks: which hooks a container gets (man 5 oci-hooks).

Files are read when a container is created, and again only after a change. While one of them cannot
be used no container is created: a hook may be what makes containers safe.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from criagent.base.errors import WrongStateError
from criagent.config.defaults.hook_files import HookFile, When, read
from criagent.config.defaults.json_file import FileError

_FILES_MOST = 1000  # of one directory
_STAGES = {"prestart": "createRuntime"}  # the deprecated stage, as containers/common has it

_Stamp = tuple[int, int, int]  # inode, time of change, size
StageHook = tuple[str, dict[str, Any]]  # a stage, and a hook of OCI


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What the conditions of hooks look at. Annotations are those of pod and container together;
    only mounts that the pod asks for count as bind mounts.
    """

    command: str
    annotations: Mapping[str, str]
    bind_mounts: bool


class HookFolders:
    """A file of a later folder replaces one of the same name in an earlier one."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._read: dict[Path, tuple[_Stamp, HookFile]] = {}

    def of(self, subject: Subject) -> tuple[StageHook, ...]:
        """The hooks of a container by stage, in the order of the names of their files.

        Reads files: call it in a thread. Raises WrongStateError for a file that cannot be used.
        """
        found: list[StageHook] = []
        for path in self.files():
            file = self._file(path)
            if _applies(file.when, subject):
                hook = _oci(file)
                found += [(_STAGES.get(stage, stage), hook) for stage in file.stages]
        return tuple(found)

    def files(self) -> list[Path]:
        """The files that count, by name. A missing folder has none. Raises WrongStateError."""
        by_name: dict[str, Path] = {}
        for folder in self.folders:
            try:
                names = [name for name in os.listdir(folder) if name.endswith(".json")]
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise WrongStateError(_text(f"{folder}: {exc.strerror}")) from None
            if len(names) > _FILES_MOST:
                raise WrongStateError(_text(f"{folder}: has more than {_FILES_MOST} files"))
            by_name |= {name: folder / name for name in names}
        return [by_name[name] for name in sorted(by_name, key=str.lower)]

    def _file(self, path: Path) -> HookFile:
        try:
            facts = path.stat()
            stamp = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            known = self._read.get(path)
            if known is None or known[0] != stamp:
                known = self._read[path] = (stamp, read(path))
        except OSError as exc:
            raise WrongStateError(_text(f"{path}: {exc.strerror}")) from None
        except FileError as error:
            raise WrongStateError(_text(str(error))) from None
        return known[1]


def _text(problem: str) -> str:
    return (
        f"OCI hook {problem}; correct or remove it, or take its directory out of "
        "runtime.defaults.hooks_dirs"
    )


def _applies(when: When, subject: Subject) -> bool:
    """Whether every condition that is given is met, and at least one is given."""
    given: list[bool] = []
    if when.always is not None:
        given.append(when.always)
    if when.has_bind_mounts is not None:
        given.append(when.has_bind_mounts and subject.bind_mounts)
    for name, value in when.annotations.items():
        given.append(
            any(
                re.search(name, key) is not None and re.search(value, text) is not None
                for key, text in subject.annotations.items()
            )
        )
    if when.commands:
        given.append(any(re.search(command, subject.command) for command in when.commands))
    return bool(given) and all(given)


def _oci(file: HookFile) -> dict[str, Any]:
    hook: dict[str, Any] = {"path": file.hook.path}
    if file.hook.args:
        hook["args"] = list(file.hook.args)
    if file.hook.env:
        hook["env"] = list(file.hook.env)
    if file.hook.timeout is not None:
        hook["timeout"] = file.hook.timeout
    return hook
