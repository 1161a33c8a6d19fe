# SPDX-License-Identifier: Apache-2.0
"""Certificates of a cluster: one authority, and what it signs, by openssl."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]


class Authority:
    """A certificate authority with its files in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = directory / "ca.crt"
        self._key = directory / "ca.key"
        _openssl(
            "req", "-x509", *_KEY, "-subj", "/CN=cluster",
            "-addext", "keyUsage=critical,keyCertSign,digitalSignature",
            "-keyout", str(self._key), "-out", str(self.certificate),
        )  # fmt: skip
        self.accounts = directory / "accounts.key"
        _openssl(
            "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-out", str(self.accounts),
        )  # fmt: skip
        self.accounts_public = directory / "accounts.pub"
        _openssl("pkey", "-in", str(self.accounts), "-pubout", "-out", str(self.accounts_public))

    def sign(self, name: str, group: str = "", names: str = "") -> tuple[Path, Path]:
        """Certificate and key for that user, or for a server under `names`."""
        stem = name.rpartition(":")[2]
        certificate, key = self.directory / f"{stem}.crt", self.directory / f"{stem}.key"
        extensions = [
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "extendedKeyUsage=serverAuth,clientAuth",
        ]  # fmt: skip
        if names:
            extensions += ["-addext", f"subjectAltName={names}"]
        subject = f"/O={group}/CN={name}" if group else f"/CN={name}"
        _openssl(
            "req", "-x509", *_KEY, "-CA", str(self.certificate), "-CAkey", str(self._key),
            "-subj", subject, *extensions, "-keyout", str(key), "-out", str(certificate),
        )  # fmt: skip
        return certificate, key

    def kubeconfig(self, server: str, name: str, group: str = "") -> Path:
        """A file with which a program comes to `server` as that user."""
        certificate, key = self.sign(name, group)
        file = certificate.with_suffix(".conf")
        user = {"client-certificate": str(certificate), "client-key": str(key)}
        cluster = {"server": server, "certificate-authority": str(self.certificate)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "me", "user": user}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "me"}}],
            "current-context": "it",
        }
        file.write_text(json.dumps(document))
        return file


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
