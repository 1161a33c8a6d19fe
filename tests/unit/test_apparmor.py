# SPDX-License-Identifier: Apache-2.0
"""AppArmor: the profile for each request, and when and how the default one is loaded.

The kernel of a test machine need not have AppArmor: a program of the test's stands for
apparmor_parser, and a file for the kernel's list. tests/vm has the real ones.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.model.common import ProfileType, SecurityProfile
from criagent.runtime.spec.security.apparmor import DEFAULT, AppArmor, default_profile, is_loaded

PARSER = """#!/bin/sh
echo "$@" >> {folder}/calls
cat > {folder}/text
[ ! -e {folder}/broken ] || {{ echo "syntax error" >&2; exit 1; }}
echo "criagent-default (enforce)" >> {folder}/profiles
"""


@pytest.fixture
def apparmor(tmp_path: Path) -> Iterator[AppArmor]:
    """A kernel with AppArmor and two profiles, and a parser that loads another."""
    program = tmp_path / "apparmor_parser"
    program.write_text(PARSER.format(folder=tmp_path))
    program.chmod(0o755)
    (tmp_path / "profiles").write_text("mine (enforce)\nodd (name) (complain)\n")
    with ThreadPoolExecutor(1) as fs:
        yield AppArmor(available=True, fs=fs, profiles=tmp_path / "profiles", places=str(tmp_path))


def localhost(name: str) -> SecurityProfile:
    return SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref=name)


UNCONFINED = SecurityProfile(type=ProfileType.UNCONFINED)
RUNTIME_DEFAULT = SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)


@pytest.mark.parametrize(
    ("wanted", "privileged", "name"),
    [
        (None, False, DEFAULT),
        (RUNTIME_DEFAULT, False, DEFAULT),
        (UNCONFINED, False, ""),
        (localhost("mine"), False, "mine"),
        (localhost("localhost/mine"), False, "mine"),
        (localhost("odd (name)"), False, "odd (name)"),
        (None, True, ""),
        (RUNTIME_DEFAULT, True, ""),
        (localhost("mine"), True, ""),
    ],
)
async def test_each_request_has_its_profile(
    apparmor: AppArmor, wanted: SecurityProfile | None, privileged: bool, name: str
) -> None:
    await apparmor.prepare()
    assert await apparmor.profile(wanted, privileged=privileged) == name


@pytest.mark.parametrize("name", ["other", "min", "mine (enforce)", "odd", ""])
async def test_a_profile_that_is_not_loaded_is_refused(apparmor: AppArmor, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="not loaded"):
        await apparmor.profile(localhost(name), privileged=False)


async def test_without_apparmor_only_a_profile_of_the_node_is_refused(apparmor: AppArmor) -> None:
    apparmor.available = False
    await apparmor.prepare()
    for wanted in (None, RUNTIME_DEFAULT, UNCONFINED):
        assert await apparmor.profile(wanted, privileged=False) == ""
    with pytest.raises(UnsupportedError, match="AppArmor is off"):
        await apparmor.profile(localhost("mine"), privileged=False)
    assert not (Path(apparmor.places) / "calls").exists()


async def test_the_default_profile_is_replaced_at_the_start(
    apparmor: AppArmor, tmp_path: Path
) -> None:
    await apparmor.prepare()
    await apparmor.prepare()
    assert (tmp_path / "calls").read_text() == "--replace --skip-cache\n" * 2
    assert "profile criagent-default" in (tmp_path / "text").read_text()


async def test_the_first_container_that_misses_it_loads_it_once(
    apparmor: AppArmor, tmp_path: Path
) -> None:
    found = await asyncio.gather(*(apparmor.profile(None, privileged=False) for _ in range(20)))
    assert set(found) == {DEFAULT}
    assert (tmp_path / "calls").read_text().count("\n") == 1


async def test_a_default_that_cannot_be_loaded_is_refused_only_when_asked_for(
    apparmor: AppArmor, tmp_path: Path
) -> None:
    (tmp_path / "broken").touch()
    await apparmor.prepare()
    assert await apparmor.profile(None, privileged=False) == ""
    with pytest.raises(UnsupportedError, match="syntax error"):
        await apparmor.profile(RUNTIME_DEFAULT, privileged=False)
    (tmp_path / "apparmor_parser").unlink()
    with pytest.raises(UnsupportedError, match="install the package apparmor"):
        await apparmor.profile(RUNTIME_DEFAULT, privileged=False)


def test_no_list_means_nothing_is_loaded(tmp_path: Path) -> None:
    assert not is_loaded("mine", tmp_path / "none")


@pytest.mark.parametrize(
    ("own", "peer"),
    [
        ("unconfined", "unconfined"),
        ("criagent (enforce)", "criagent"),
        ("/usr/bin/criagent (complain)", "/usr/bin/criagent"),
        ("", "unconfined"),
        ("a, capability, (enforce)", "unconfined"),
    ],
)
def test_the_agents_own_signals_are_let_through(own: str, peer: str) -> None:
    assert f"  signal (receive) peer={peer},\n" in default_profile(own)


def _denied(path: str, access: str) -> bool:
    """Whether a deny rule of the profile matches (apparmor.d(5), "Globbing")."""
    for pattern, letters in re.findall(
        r"^  deny (/\S+) ([rwklx]+),$", default_profile(""), re.MULTILINE
    ):
        made = re.escape(pattern).replace(r"\*\*", "\0").replace(r"\*", "[^/]*")
        made = made.replace(r"\?", "[^/]").replace("\0", ".*")
        made = re.sub(r"\\\[\\?\^(.*?)\\\]", lambda m: f"[^/{m[1]}]".replace("\\-", "-"), made)
        if set(access) <= set(letters) and re.fullmatch(made, path):
            return True
    return False


@pytest.mark.parametrize(
    ("path", "access", "denied"),
    [
        ("/proc/1/oom_score_adj", "w", False),
        ("/proc/17/task/18/comm", "w", False),
        ("/proc/sys/kernel/shmmax", "w", False),
        ("/proc/sys/kernel/core_pattern", "w", True),
        ("/proc/sys/kernel/sem", "w", True),
        ("/proc/sys/kernel/sched_domain/x", "w", True),
        ("/proc/sys/kernel/random/boot_id", "w", True),
        ("/proc/sys/kernel/yama/ptrace_scope", "w", True),
        ("/proc/sys/keys/quota", "w", True),
        ("/proc/sys/net/ipv4/ip_forward", "w", True),
        ("/proc/sys/vm/drop_caches", "w", True),
        ("/proc/sysvipc/shm", "w", True),
        ("/proc/scsi/scsi", "w", True),
        ("/proc/irq/1/smp_affinity", "w", True),
        ("/proc/acpi/wakeup", "w", True),
        ("/proc/sysrq-trigger", "w", True),
        ("/proc/kcore", "r", True),
        ("/proc/meminfo", "r", False),
        ("/proc/meminfo", "w", True),
        ("/sys/kernel/uevent_helper", "w", True),
        ("/sys/fs/cgroup/x/cgroup.procs", "w", False),
        ("/sys/fs/bpf/x", "w", True),
        ("/sys/firmware/efi/x", "r", True),
        ("/sys/devices/virtual/powercap/intel-rapl/x", "r", True),
        ("/sys/devices/system/cpu/online", "r", False),
        ("/sys/devices/system/cpu/cpu1/online", "w", True),
        ("/sys/class/net/eth0/mtu", "w", True),
        ("/etc/passwd", "w", False),
    ],
)
def test_what_the_default_profile_denies(path: str, access: str, denied: bool) -> None:
    assert _denied(path, access) is denied


def test_the_profile_compiles_where_there_is_a_compiler() -> None:
    parser = shutil.which("apparmor_parser", path="/usr/sbin:/sbin")
    features = Path("/etc/apparmor.d/abi/3.0")
    if parser is None or not features.exists():
        pytest.skip("no apparmor_parser here; the VM tier loads the profile into a kernel")
    command = [parser, "-QKS", "-M", str(features)]
    subprocess.run(command, input=default_profile("").encode(), check=True, capture_output=True)
