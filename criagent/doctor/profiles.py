# SPDX-License-Identifier: Apache-2.0
"""Security profiles from registries: whether each can be read, as CreateContainer does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from criagent.base.errors import AgentError
from criagent.config.sections import Config
from criagent.doctor.finding import Finding, fine, warning
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import parse_digest
from criagent.image.profiles.artifact import MAX_PROFILE
from criagent.model.image import PulledProfile
from criagent.store.profiles import stored_profiles

_NAME = "security profiles"
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileFacts:
    """`broken` names the profiles, of `count`, whose content is missing or damaged; `problem` is
    why their rows cannot be read, "" = they can.
    """

    count: int = 0
    broken: tuple[str, ...] = ()
    problem: str = ""


def read(config: Config) -> ProfileFacts:
    """Read every profile of storage.root."""
    root = config.storage.root
    try:
        found = stored_profiles(root / "state.db")
    except AgentError as exc:
        return ProfileFacts(problem=str(exc))
    files = BlobFiles(root / "blobs")
    broken = tuple(profile.digest for profile in found if _is_broken(profile, files))
    return ProfileFacts(count=len(found), broken=broken)


def judge(facts: ProfileFacts) -> Iterator[Finding]:
    """One finding."""
    if facts.problem:
        yield warning(
            _NAME,
            facts.problem,
            "run this as root, or start criagent, which sets rows aside that it cannot decode",
        )
    elif facts.broken:
        names = ", ".join(facts.broken[:_SHOWN])
        more = f" and {len(facts.broken) - _SHOWN} more" if len(facts.broken) > _SHOWN else ""
        yield warning(
            _NAME,
            f"{len(facts.broken)} of {facts.count} have lost content, and containers that name "
            f"them are refused: {names}{more}",
            "run `criagent image fsck --repair`; the next PullSecurityProfile fetches them",
        )
    else:
        yield fine(_NAME, f"{facts.count} from registries")


def _is_broken(profile: PulledProfile, files: BlobFiles) -> bool:
    try:
        files.read(parse_digest(profile.layer), MAX_PROFILE)
    except (AgentError, OSError):
        return True
    return not files.has(parse_digest(profile.digest))
