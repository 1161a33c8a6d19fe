# SPDX-License-Identifier: Apache-2.0
"""The files of nftables rules, read by nft and the kernel, and found in the wheel."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from criagent.kernel.nftables import Nftables
from criagent.model.common import Protocol
from criagent.net import antispoof, hostport, rules
from tests.support import wheel
from tests.support.cri_client import Cri

pytestmark = pytest.mark.root
FILES = ("hostports.nft", "antispoof.nft")
SOURCE = Path(rules.__file__).parent


def forward(host_ip: str = "", address: str = "10.88.0.5") -> hostport.Forward:
    return hostport.Forward(
        protocol=Protocol.SCTP, host_ip=host_ip, host_port=9, address=address, port=99
    )


PORT = antispoof.Port(
    interface="cri0123456789a",
    mac=antispoof.pod_mac("0123456789" * 6),
    addresses=("10.88.0.5", "fd00:10:88::5"),
)
CONTENTS = rules.Contents(
    bridge="br-1.x",
    pods=("10.88.0.0/16", "fd00:10:88::/64", "10.97.0.3"),
    forwards=(forward(), forward("192.0.2.1"), forward(address="fd00:10:88::5")),
    ports=(PORT,),
)


@pytest.mark.parametrize("anti_spoofing", [False, True])
def test_nft_and_the_kernel_take_the_whole_text(anti_spoofing: bool) -> None:
    text = rules.replacement(CONTENTS, anti_spoofing=anti_spoofing)
    subprocess.run(["nft", "-c", "-f", "-"], input=text, text=True, check=True)


def test_what_was_added_can_be_deleted_once_and_again(cri: Cri) -> None:
    """Nothing else is changed, and what is not there is no failure."""
    listing = ["nft", "list", "ruleset"]
    before = subprocess.check_output(listing)
    nft = Nftables()
    nft.run(antispoof.add_commands([PORT]) + hostport.add_commands(CONTENTS.forwards))
    assert subprocess.check_output(listing) != before
    for _ in range(2):
        nft.run(antispoof.delete_commands([PORT]) + hostport.delete_commands(CONTENTS.forwards))
        assert subprocess.check_output(listing) == before
    nft.close()


def test_a_dry_run_changes_nothing() -> None:
    listing = ["nft", "list", "ruleset"]
    before = subprocess.check_output(listing)
    nft = Nftables(dry_run=True)
    nft.run(rules.clearance(*rules.TABLES))
    nft.close()
    assert subprocess.check_output(listing) == before


def test_the_files_are_in_the_wheel(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel.build(tmp_path)) as archive:
        for name in FILES:
            assert archive.read(f"criagent/net/{name}") == (SOURCE / name).read_bytes()
