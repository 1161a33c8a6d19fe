# SPDX-License-Identifier: Apache-2.0
"""Platforms: how they are spelt, which of them run here, and which of those is best.

The rules are those of github.com/containerd/platforms (Normalize, Only), so that an index means the
same image here as under containerd; tests/vectors/platforms.json holds answers of that module.
"""

from __future__ import annotations

import functools
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MACHINES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv5l": "arm",
    "armv6l": "arm",
    "armv7l": "arm",
    "armv8l": "arm",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
_MIPS = {"mips", "mips64"}
_SPELLINGS = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_VARIANTS = {
    "amd64": {"v1": ""},
    "arm64": {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"},
    "arm": {"": "v7", "7": "v7", "5": "v5", "6": "v6", "8": "v8"},
}
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform as indexes and configurations spell it."""

    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = (self.os[:40], self.architecture[:40], self.variant[:40])
        text = "/".join(part for part in parts if part) or "unknown"
        return text if text.isprintable() else ascii(text)

    @property
    def normal(self) -> tuple[str, str, str]:
        """System, architecture and variant in the one spelling that is compared."""
        system = self.os.lower() or "linux"
        given, variant = self.architecture.lower(), self.variant.lower()
        architecture, fixed = _SPELLINGS.get(given, (given, None))
        if fixed is not None:
            variant = fixed
        elif given != "armhf":
            variant = _VARIANTS.get(architecture, {}).get(variant, variant)
        return "darwin" if system == "macos" else system, architecture, variant


def parse_platform(text: str) -> Platform:
    """The platform of a text such as linux/arm64 or linux/arm/v7."""
    system, architecture, variant = [*text.split("/"), "", ""][:3]
    return Platform(architecture, system, variant)


def rank(offered: Platform, host: Platform) -> int | None:
    """How well `offered` fits `host`: 0 is best, None does not run.

    `os.version` matters to Windows alone. An entry that asks for features of the system never fits:
    no host states any.
    """
    if offered.os_features:
        return None
    order = _order(*host.normal)
    return order.index(offered.normal) if offered.normal in order else None


@functools.lru_cache(maxsize=64)
def _order(system: str, architecture: str, variant: str) -> list[tuple[str, str, str]]:
    names = _runnable(architecture, variant)
    return [Platform(one, system, other).normal for one, other in names]


def _runnable(architecture: str, variant: str) -> Iterator[tuple[str, str]]:
    """Architectures and variants that a machine runs, its own first."""
    if architecture == "arm64":
        yield from _arm64(variant or "v8")
        return
    yield architecture, variant
    number = variant.removeprefix("v")
    level = int(number) if number.isascii() and number.isdigit() and len(number) < 3 else 0
    if architecture == "amd64":
        for lower in range(level - 1, 0, -1):
            yield "amd64", f"v{lower}"
        yield "386", ""
    elif architecture == "arm":
        for lower in range(level - 1, 4, -1):
            yield "arm", f"v{lower}"


def _arm64(variant: str) -> Iterator[tuple[str, str]]:
    """ARMv9.n has everything of ARMv8.(n+5); every one of them runs 32-bit ARMv8 and below."""
    major, _, text = variant.removeprefix("v").partition(".")
    minor = int(text or 0) if (text or "0").isascii() and (text or "0").isdigit() else -1
    known = variant.startswith("v") and (
        (major == "8" and 0 <= minor <= 9) or (major == "9" and 0 <= minor <= 7)
    )
    if known and major == "9":
        for lower in range(minor, -1, -1):
            yield "arm64", f"v9.{lower}" if lower else "v9"
        minor = min(minor + 5, 9)
    if known:
        for lower in range(minor, -1, -1):
            yield "arm64", f"v8.{lower}" if lower else "v8"
        for lower in range(8, 4, -1):
            yield "arm", f"v{lower}"


@functools.cache
def host_platform() -> Platform:
    """The platform of this machine; with a variant on ARM alone, as containerd has it."""
    machine = platform.machine()
    architecture = _MACHINES.get(machine, machine)
    if architecture in _MIPS and sys.byteorder == "little":
        architecture += "le"
    variant = ""
    if architecture in {"arm", "arm64"}:
        try:
            variant = arm_variant(_CPUINFO.read_text(errors="replace"), machine)
        except OSError:
            variant = arm_variant("", machine)
    return Platform(architecture, "linux", variant)


def arm_variant(cpuinfo: str, machine: str) -> str:
    """`v8`, `v7`, … from /proc/cpuinfo, or from the machine's name when that does not say."""
    facts: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip().lower(), value.strip().lower())
    stated = facts.get("cpu architecture", "")
    if not stated:
        stated = "8" if machine == "aarch64" else machine.removeprefix("armv")[:1]
    if stated == "7" and machine != "aarch64":
        # A Raspberry Pi with an ARMv6 processor says 7.
        stated = "6" if facts.get("model name", "").startswith("armv6-compatible") else "7"
    digit = "8" if stated == "aarch64" else "7" if stated.startswith("?(1") else stated[:1]
    return f"v{digit}" if digit.isascii() and digit.isdigit() else ""
