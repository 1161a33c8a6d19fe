# SPDX-License-Identifier: Apache-2.0
"""The version of this package; the build reads it from here too."""

from pathlib import Path

VERSION = "0.2.0"


def described() -> str:
    """The version, with the commit that a package was built from: "0.2.0 (0123456789ab)".

    Builds write the commit to the file `commit` beside this one (docs/releases.md).
    """
    try:
        commit = Path(__file__).with_name("commit").read_text().strip()
    except OSError:  # a checkout, or a build without git
        return VERSION
    return f"{VERSION} ({commit})"
