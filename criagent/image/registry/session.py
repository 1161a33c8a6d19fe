# SPDX-License-Identifier: Apache-2.0
"""One pull's view of a repository."""

from __future__ import annotations

from dataclasses import dataclass, field

from criagent.image.documents.reference import Reference
from criagent.image.hosts.credentials import Credentials
from criagent.image.hosts.hosts_toml import Host
from criagent.image.registry.urls import Origin


@dataclass(slots=True, kw_only=True)
class Session:
    """Hosts in their order, their credentials, and what they granted or refused so far."""

    reference: Reference
    hosts: list[Host]
    credentials: dict[str, Credentials | None]  # by the host's URL
    authorizations: dict[Origin, str] = field(default_factory=dict)  # fields that were accepted
    unreachable: set[str] = field(default_factory=set)  # URLs of hosts, for the rest of the pull
    get_realms: set[str] = field(default_factory=set)  # token services that take no form
