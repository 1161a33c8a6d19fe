# SPDX-License-Identifier: Apache-2.0
"""Which hosts an image is pulled from, and which images a short name can mean.

registries.conf, where it is configured and has a table for the image, comes before the directories
of hosts.toml; for any other image they are asked. The file is read again when it has changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from criagent.base.errors import InvalidRequestError, RegistryDeniedError
from criagent.config import registries_conf
from criagent.config.registries_conf import RegistriesConf, Registry
from criagent.image.documents.reference import Reference, is_short, parse_reference
from criagent.image.hosts.auth_file import AuthFile
from criagent.image.hosts.credentials import same_registry
from criagent.image.hosts.hosts_toml import Host, HostsDirectory, default_url

_State = tuple[tuple[str, int, int, int], ...]


class RegistriesFile:
    """registries.conf with its drop-ins."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._state: _State | None = None
        self._conf = RegistriesConf()

    def current(self) -> RegistriesConf:
        """What the files say now. Raises InvalidRequestError that names the file and the key."""
        try:
            state = tuple(_state(self.file))
            if state != self._state:
                self._conf = registries_conf.read(self.file)
                self._state = state
        except FileNotFoundError:
            raise InvalidRequestError(
                f"registry.registries_conf: there is neither {self.file} nor a drop-in in "
                f"{self.file}.d; write one, or remove the key"
            ) from None
        except (OSError, ValueError) as error:
            self._state = None
            raise InvalidRequestError(f"registry.registries_conf: {error}") from None
        return self._conf


def _state(file: Path) -> Iterator[tuple[str, int, int, int]]:
    for part in registries_conf.files(file):
        found = part.stat()
        yield str(part), found.st_ino, found.st_mtime_ns, found.st_size


@dataclass(frozen=True, slots=True)
class RegistryHosts:
    """The directories of hosts.toml, and registries.conf if it is configured."""

    directory: HostsDirectory
    conf: RegistriesFile | None = None

    def of(self, reference: Reference) -> list[Host]:
        """Hosts for `reference` in the order to try.

        Raises InvalidRequestError that names the file for invalid settings, RegistryDeniedError
        for an image that they block.
        """
        table = None if self.conf is None else _table(self.conf.current(), reference)
        if table is None or self.conf is None:
            return self.directory.hosts(reference.registry)
        if table.blocked:
            raise RegistryDeniedError(
                f"{reference}: {table.prefix} is blocked by {self.conf.file} or a drop-in beside "
                "it; use another registry, or remove `blocked` there"
            )
        return list(self._hosts(table, reference))

    def credentials(self, node: AuthFile) -> list[AuthFile]:
        """Where to look for credentials in order, with the `node`'s file where it has its place.

        A helper of registries.conf is a file that names it for every registry. Raises
        InvalidRequestError that names the file for invalid settings.
        """
        named = () if self.conf is None else self.conf.current().helpers
        if self.conf is None or not named:
            return [node]
        file = f"{self.conf.file} or a drop-in beside it"
        return [
            node if name == registries_conf.AUTH_FILES else AuthFile(file, store=name)
            for name in named
        ]

    def references(self, text: str) -> list[Reference]:
        """The images that `text` can mean, in the order to try; more than one only for short names.

        Raises InvalidRequestError for an invalid name, and for a short one that registries.conf
        does not resolve.
        """
        reference = parse_reference(text).with_default_tag()
        if self.conf is None or not is_short(text):
            return [reference]
        conf = self.conf.current()
        name, suffix = _split(text)
        if alias := conf.aliases.get(name):
            return [parse_reference(alias + suffix).with_default_tag()]
        if not conf.search:
            raise InvalidRequestError(
                f"{text[:160]!r} is a short name, and {self.conf.file} has neither an alias for it "
                "nor unqualified-search-registries; write the whole name, such as "
                f"docker.io/{reference.repository}"
            )
        if conf.mode == "enforcing" and len(conf.search) > 1:
            raise InvalidRequestError(
                f"{text[:160]!r} is ambiguous: short-name-mode is enforcing, and it can be an "
                f"image of {', '.join(conf.search)[:300]}; write the whole name, or add an alias "
                f"to {self.conf.file}"
            )
        return [parse_reference(f"{one}/{text}").with_default_tag() for one in conf.search]

    def _hosts(self, table: Registry, reference: Reference) -> Iterator[Host]:
        by_digest = reference.digest is not None
        for mirror in table.mirrors:
            if mirror.use in {"all", "digest-only" if by_digest else "tag-only"}:
                place = _moved(table.prefix, mirror.location, reference)
                yield from self._at(place, reference, mirror=True, insecure=mirror.insecure)
        place = _moved(table.prefix, table.location, reference)
        yield from self._at(place, reference, mirror=False, insecure=table.insecure)

    def _at(
        self, place: str, reference: Reference, *, mirror: bool, insecure: bool
    ) -> Iterator[Host]:
        """The host of HOST/REPOSITORY; without TLS after it, where that is allowed."""
        registry, _, repository = place.partition("/")
        host = Host(
            url=default_url(registry),
            mirror=mirror or not same_registry(registry, reference.registry),
            repository=repository,
            skip_verify=insecure,
        )
        if insecure:
            host = replace(host, url=host.url.replace("http:", "https:", 1))
        files = self.directory.tls_files(registry)
        yield replace(host, ca=files.ca, client=files.client)
        if insecure:
            plain = host.url.replace("https:", "http:", 1)
            yield replace(host, url=plain, skip_verify=False, fallback_for=host.url)


def _table(conf: RegistriesConf, reference: Reference) -> Registry | None:
    """The table with the longest prefix that the image has."""
    fitting = [one for one in conf.registries.values() if _has_prefix(reference, one.prefix)]
    return max(fitting, key=lambda one: len(one.prefix), default=None)


def _has_prefix(reference: Reference, prefix: str) -> bool:
    if prefix.startswith("*."):
        return reference.registry.partition(":")[0].endswith(prefix[1:])
    if prefix in {reference.tagged, f"{reference.name}@{reference.digest}"}:
        return True
    return f"{reference.name}/".startswith(f"{prefix}/")


def _moved(prefix: str, location: str, reference: Reference) -> str:
    """HOST/REPOSITORY of the image at a location; "" is where its name says."""
    if not location:
        return reference.name
    if prefix.startswith("*."):
        return f"{location}/{reference.repository}"
    rest = reference.name[len(prefix) :]  # empty where the prefix has a tag or a digest
    return f"{location.partition('@')[0]}{rest}"


def _split(text: str) -> tuple[str, str]:
    """A short name, and its tag and digest with their separators."""
    name, at, digest = text.partition("@")
    path, colon, tag = name.partition(":")
    return path, f"{colon}{tag}{at}{digest}"
