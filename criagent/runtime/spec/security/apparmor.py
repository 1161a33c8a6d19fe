# SPDX-License-Identifier: Apache-2.0
"""AppArmor: the profile of a container, and the default profile loaded into the kernel.

The default profile is part of this package (criagent-default.apparmor). It is replaced at every
start, so that an update of the agent applies to containers started afterwards, and loaded again by
the first container that finds it missing, for example after `aa-teardown`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
import shutil
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.model.common import ProfileType, SecurityProfile
from criagent.process.child import run
from criagent.runtime.node.facts import PROFILES

DEFAULT = "criagent-default"
_OWN_LABEL = Path("/proc/self/attr/current")
_LABEL = re.compile(r"[A-Za-z0-9_./:@+-]+")
PLACES = "/usr/sbin:/sbin:/usr/bin:/bin"  # paths of apparmor_parser; a service's PATH may lack sbin
_LIMIT_S = 60.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(slots=True, kw_only=True)
class AppArmor:
    """The kernel's AppArmor; `available` = it is on and its files can be read."""

    available: bool
    fs: Executor
    profiles: Path = PROFILES
    places: str = PLACES
    _loading: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    async def prepare(self) -> None:
        """Load the default profile if AppArmor is on; a failure is logged with its cure."""
        if self.available and (problem := await self._load()):
            log.warning("apparmor_default_profile_not_loaded", problem=problem)

    async def remove(self) -> str:
        """Take the default profile out of the kernel; returns the problem, "" for none."""
        if not self.available or not await self._loaded(DEFAULT):
            return ""
        return await self._parse("--remove")

    async def profile(self, wanted: SecurityProfile | None, *, privileged: bool) -> str:
        """The name of a loaded profile, "" for none.

        A privileged container has none. Without AppArmor in the kernel RuntimeDefault is none. No
        request means the default profile, or none where it cannot be loaded. Raises
        UnsupportedError for a profile that this node cannot have, InvalidRequestError for one that
        is not loaded.
        """
        kind = wanted.type if wanted is not None else ProfileType.RUNTIME_DEFAULT
        if privileged or kind is ProfileType.UNCONFINED:
            return ""
        if wanted is not None and kind is ProfileType.LOCALHOST:
            return await self._localhost(wanted.localhost_ref.removeprefix("localhost/"))
        if not self.available:
            return ""
        if await self._loaded(DEFAULT):
            return DEFAULT
        async with self._loading:
            problem = "" if await self._loaded(DEFAULT) else await self._load()
        if problem and wanted is not None:
            raise UnsupportedError(f"AppArmor profile RuntimeDefault: {problem}")
        return "" if problem else DEFAULT

    async def _localhost(self, name: str) -> str:
        if not self.available:
            raise UnsupportedError(
                f'AppArmor profile "{name}" is requested, but AppArmor is off in this '
                "node's kernel"
            )
        if not await self._loaded(name):
            raise InvalidRequestError(
                f'AppArmor profile "{name}" is not loaded on this node; load it with '
                "apparmor_parser -r"
            )
        return name

    async def _loaded(self, name: str) -> bool:
        return await run_in(self.fs, is_loaded, name, self.profiles)

    async def _load(self) -> str:
        """Replace the default profile; returns the problem, "" for none."""
        return await self._parse("--replace")

    async def _parse(self, what: str) -> str:
        parser = shutil.which("apparmor_parser", path=self.places)
        if parser is None:
            return "apparmor_parser is missing on this node; install the package apparmor"
        text = default_profile(_own_label()).encode()
        try:
            ended = await run(
                [parser, what, "--skip-cache"], stdin=text, limit_s=_LIMIT_S, keep=1 << 16
            )
        except TimeoutError:
            return f"{parser} took over {_LIMIT_S:g} s"
        reason = " ".join(ended.errors.split()) or ended.status
        return f"{parser} failed: {reason}" if ended.status else ""


def default_profile(own_label: str) -> str:
    """The text of the default profile for an agent that runs under `own_label`."""
    text = Path(__file__).with_name(f"{DEFAULT}.apparmor").read_text()
    label = own_label.partition(" (")[0]
    return text.replace("@DAEMON@", label if _LABEL.fullmatch(label) else "unconfined")


def is_loaded(name: str, profiles: Path = PROFILES) -> bool:
    """Whether the kernel has the profile. Its lines are "NAME (MODE)"."""
    try:
        lines = profiles.read_text().splitlines()
    except OSError:
        return False
    return any(line.rpartition(" (")[0] == name for line in lines)


def _own_label() -> str:
    try:
        return _OWN_LABEL.read_text().strip("\0\n")
    except OSError:  # EINVAL when another security module answers here
        return ""
