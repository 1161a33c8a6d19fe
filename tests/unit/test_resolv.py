# SPDX-License-Identifier: Apache-2.0
"""resolv.conf of pods."""

from __future__ import annotations

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.model.sandbox import DnsConfig
from criagent.net.resolv import resolv_conf

HOST = "nameserver 192.0.2.53\n"


def test_a_pod_without_dns_configuration_gets_the_hosts_file() -> None:
    assert resolv_conf(None, HOST) == HOST


def test_an_empty_dns_configuration_gives_an_empty_file() -> None:
    assert resolv_conf(DnsConfig(), HOST) == ""


def test_searches_servers_and_options_in_this_order() -> None:
    dns = DnsConfig(
        servers=("10.96.0.10", "fd00::a"),
        searches=("ns.svc.cluster.local", "svc.cluster.local"),
        options=("ndots:5", "edns0"),
    )
    assert resolv_conf(dns, HOST) == (
        "search ns.svc.cluster.local svc.cluster.local\n"
        "nameserver 10.96.0.10\n"
        "nameserver fd00::a\n"
        "options ndots:5 edns0\n"
    )


@pytest.mark.parametrize("word", ["a b", "a\nnameserver 6.6.6.6", "", "a\tb", "a\0", "a\x85b", "é"])
@pytest.mark.parametrize("field", ["servers", "searches", "options"])
def test_an_entry_that_is_not_one_word_is_refused(field: str, word: str) -> None:
    with pytest.raises(InvalidRequestError, match="dns_config has the invalid entry"):
        resolv_conf(DnsConfig(**{field: ("good", word)}), HOST)
