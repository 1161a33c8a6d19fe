# SPDX-License-Identifier: Apache-2.0
"""The copyright file of a package (DEP 5): the program, then each dependency by its metadata."""

from __future__ import annotations

import email.message
import email.parser
import email.policy
import re
from collections.abc import Iterator
from pathlib import Path

_HEAD = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: criagent
Source: the repository that this package was built from
Comment: The directories of /usr/lib/criagent other than criagent are wheels of the Python Package
 Index, unpacked; their *.dist-info directories name their origin.

Files: *
Copyright: The criagent authors
License: Apache-2.0

License: Apache-2.0
 On Debian systems, the text of the Apache License, Version 2.0, is in
 /usr/share/common-licenses/Apache-2.0.
"""
# The Apache License itself is on every Debian system; a file may have others beside it.
_APACHE = re.compile(
    r"[ \t]*Apache License\s+Version 2\.0, January 2004"
    r".*?any such warranty or additional\s+liability\."
    r"(?:\s+END OF TERMS AND CONDITIONS)?(?:\s+APPENDIX.*?limitations under the License\.)?",
    re.DOTALL,
)
_REFERENCE = "Apache License 2.0: see /usr/share/common-licenses/Apache-2.0."
_NAMES = re.compile(r"licen[sc]e|copying", re.IGNORECASE)


def text(library: Path) -> str:
    """The whole file, for the wheels unpacked in `library`."""
    return "\n".join([_HEAD, *(_paragraphs(info) for info in sorted(library.glob("*.dist-info")))])


def _paragraphs(info: Path) -> str:
    metadata = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(
        (info / "METADATA").read_bytes()
    )
    name = metadata["Name"]
    files = sorted({line.split("/")[0].split(",")[0] for line in _record(info)})
    shown = "\n ".join(f"usr/lib/criagent/{top}*" for top in files if not top.startswith("."))
    license_name = f"of-{name}"
    head = f"Files: {shown}\nCopyright: {_authors(metadata, info)}\nLicense: {license_name}\n"
    texts = [_shortened(file.read_text(errors="replace")) for file in sorted(_licenses(info))]
    body = "\n".join(texts) or f"{_expression(metadata)}, as its metadata says."
    return (
        f"{head}\nLicense: {license_name}\n"
        + "\n".join(f" {line.rstrip()}" if line.strip() else " ." for line in body.splitlines())
        + "\n"
    )


def _shortened(text: str) -> str:
    return _APACHE.sub(_REFERENCE, text)


def _record(info: Path) -> list[str]:
    return (info / "RECORD").read_text().splitlines()


def _licenses(info: Path) -> Iterator[Path]:
    return (path for path in info.rglob("*") if path.is_file() and _NAMES.search(path.name))


def _expression(metadata: email.message.Message) -> str:
    return metadata["License-Expression"] or metadata["License"] or "see the project's page"


def _authors(metadata: email.message.Message, info: Path) -> str:
    """Lines of its licence that name somebody, else the authors of its metadata."""
    for file in sorted(_licenses(info)):
        for line in file.read_text(errors="replace").splitlines():
            found = re.match(r"\W*copyright (?:\(c\)|©)?\s*(.*\w.*)", line.strip(), re.IGNORECASE)
            if found and re.search(r"\d{4}", line):
                return found[1].strip()
    return metadata["Author"] or metadata["Author-Email"] or f"the authors of {metadata['Name']}"
