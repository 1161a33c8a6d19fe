# SPDX-License-Identifier: Apache-2.0
"""resolv.conf of a pod (man 5 resolv.conf)."""

from __future__ import annotations

import re

from criagent.base.errors import InvalidRequestError
from criagent.model.sandbox import DnsConfig

_WORD = re.compile(r"[!-~]+")


def resolv_conf(dns: DnsConfig | None, host_text: str) -> str:
    """The file's text: the host's for None, else exactly the contents of `dns`, possibly nothing.

    Raises InvalidRequestError for anything that would not stay one word on its line.
    """
    if dns is None:
        return host_text
    for word in (*dns.servers, *dns.searches, *dns.options):
        if _WORD.fullmatch(word) is None:
            raise InvalidRequestError(f"dns_config has the invalid entry {word[:80]!r}")
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "".join(line + "\n" for line in lines)
