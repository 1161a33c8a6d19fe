# SPDX-License-Identifier: Apache-2.0
"""One pull's view of a repository."""

from __future__ import annotations

from dataclasses import dataclass, field

from criagent.base.errors import RegistryDeniedError
from criagent.image.documents.reference import Reference
from criagent.image.hosts.credentials import Credentials, Helper
from criagent.image.hosts.hosts_toml import Host
from criagent.image.registry.urls import Origin


@dataclass(slots=True, kw_only=True)
class Session:
    """Hosts in their order, their credentials, and what they granted or refused so far."""

    reference: Reference
    hosts: list[Host]
    credentials: dict[str, tuple[Credentials | Helper, ...]]  # by the host's URL, in their order
    helper_timeout_s: float = 30.0
    authorizations: dict[Origin, str] = field(default_factory=dict)  # fields that were accepted
    unreachable: set[str] = field(default_factory=set)  # URLs of hosts, for the rest of the pull
    silent: set[str] = field(default_factory=set)  # URLs of hosts that gave no answer at all
    get_realms: set[str] = field(default_factory=set)  # token services that take no form

    async def credentials_of(self, host: Host) -> Credentials | None:
        """Those for a host; a program that may have them is asked once.

        Raises RegistryDeniedError, the first helper's, when one failed and no other had any.
        """
        found, failure = None, None
        for source in self.credentials.get(host.url, ()):
            try:
                found = await self._ask(source)
            except RegistryDeniedError as error:
                failure = failure or error
            if found is not None:
                break
        if found is None and failure is not None:
            raise failure
        self.credentials[host.url] = () if found is None else (found,)
        return found

    async def _ask(self, source: Credentials | Helper) -> Credentials | None:
        if isinstance(source, Credentials):
            return source
        from criagent.image.hosts import helpers  # few nodes have such programs

        return await helpers.ask(source, self.helper_timeout_s)
