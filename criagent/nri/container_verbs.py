# SPDX-License-Identifier: Apache-2.0
"""The verbs behind what plugins ask for of containers that run."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable

from criagent.base.errors import UnavailableError
from criagent.model.common import Resources
from criagent.runtime.spec.inputs import OciObject


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verbs:
    """The verbs."""

    update: Callable[[str, Resources, OciObject], Awaitable[None]]  # ResourceUpdater.apply
    stop: Callable[[str, int], Awaitable[None]]  # ContainerStopper.stop


class VerbsToCome:
    """The verbs, which are made after what calls plugins."""

    def __init__(self) -> None:
        self._verbs: Verbs | None = None

    def use(self, verbs: Verbs) -> None:
        """They are made."""
        self._verbs = verbs

    @property
    def known(self) -> Verbs:
        """Raises UnavailableError before they are made."""
        if self._verbs is None:
            raise UnavailableError("the agent is starting")
        return self._verbs
