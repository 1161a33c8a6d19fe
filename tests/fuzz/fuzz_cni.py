# SPDX-License-Identifier: Apache-2.0
"""CNI results and network lists: AgentError, else addresses that are such."""

from __future__ import annotations

import ipaddress
import json
from random import Random

from criagent.base.errors import AgentError
from criagent.net.cni.config import parse
from criagent.net.cni.result import addresses, parse_result
from tests.fuzz.frame import mutate_json, words_of

RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "mac": "00:11:22:33:44:55", "sandbox": "/x"}, {"name": "h"}],
    "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0, "version": "4"}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}],
    "dns": {"nameservers": ["10.0.0.1"]},
}
LIST = {
    "cniVersion": "1.0.0",
    "cniVersions": ["0.4.0", "1.0.0"],
    "name": "net",
    "disableCheck": True,
    "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local"}, "capabilities": {"portMappings": True}}
    ],
}
SEEDS = [json.dumps(document).encode() for document in (RESULT, LIST)]


def make(rnd: Random, seeds: list[bytes]) -> bytes:
    return mutate_json(rnd, rnd.choice([*SEEDS, *seeds]), words_of(RESULT, LIST))


def check(data: bytes) -> None:
    try:
        result = parse_result(data, "kind")
        for text in addresses(result, "kind", "eth0"):
            ipaddress.ip_interface(text)
    except AgentError as exc:
        assert len(str(exc)) < 5000
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(document, dict):
        try:
            assert parse(document, "file").plugins
        except AgentError as exc:
            assert len(str(exc)) < 5000
