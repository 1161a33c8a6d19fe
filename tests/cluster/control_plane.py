# SPDX-License-Identifier: Apache-2.0
"""etcd, the API server, the controller manager and the scheduler as processes of this machine."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.cluster.api_client import Api, ApiError
from tests.cluster.certificates import Authority
from tests.cluster.ground import Ground, Program, eventually, seconds

PORT = 6443
SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"
_ETCD = "http://127.0.0.1:2379"


class ControlPlane:
    """Starts at construction, the programs one after the other; `stop` ends them."""

    def __init__(self, directory: Path, ground: Ground) -> None:
        self._directory = directory
        self._ground = ground
        self._running: list[Program] = []
        keys = directory / "pki"
        keys.mkdir()
        self.authority = Authority(keys)
        self.server = f"https://{ground.address}:{PORT}"
        self.admin = self.authority.kubeconfig(self.server, "admin", "system:masters")
        self.api = self._client()
        try:
            self._start_etcd()
            self._start_api_server()
            self._start_controllers()
        except BaseException:
            self.stop()
            raise

    def anonymous(self) -> Api:
        """A client without a certificate; its `headers` may have a token."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        return Api(self._ground.address, PORT, context, seconds(40))

    def check(self) -> None:
        """Fail when a program has ended."""
        for program in self._running:
            program.check()

    def stop(self) -> None:
        for program in reversed(self._running):
            program.stop()
        self._running.clear()

    def _client(self) -> Api:
        client = self.anonymous()
        client._context.load_cert_chain(*(self.admin.with_suffix(end) for end in (".crt", ".key")))  # type: ignore[arg-type]
        return client

    def _run(self, *command: str) -> None:
        self._running.append(Program(self._directory / f"{command[0]}.log", *command))

    def _start_etcd(self) -> None:
        data = self._directory / "etcd"
        self._run(
            "etcd", f"--data-dir={data}", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls={_ETCD}", f"--advertise-client-urls={_ETCD}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--heartbeat-interval=500", "--election-timeout=5000",
        )  # fmt: skip
        self._until_ready("etcd", lambda: _answers(f"{_ETCD}/health"))

    def _start_api_server(self) -> None:
        pki = self.authority
        names = f"IP:{self._ground.address},IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc"
        certificate, key = pki.sign("kube-apiserver", names=names)
        client, client_key = pki.sign("kubelet-client", "system:masters")
        self._run(
            "kube-apiserver", f"--etcd-servers={_ETCD}",
            f"--advertise-address={self._ground.address}", f"--secure-port={PORT}",
            f"--tls-cert-file={certificate}", f"--tls-private-key-file={key}",
            f"--client-ca-file={pki.certificate}",
            f"--kubelet-client-certificate={client}", f"--kubelet-client-key={client_key}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki.accounts_public}",
            f"--service-account-signing-key-file={pki.accounts}",
            f"--service-cluster-ip-range={SERVICES}", "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
        )  # fmt: skip
        self._until_ready("the API server", self._api_ready)

    def _start_controllers(self) -> None:
        pki = self.authority
        for name, port, more in (
            ("kube-scheduler", 10259, []),
            (
                "kube-controller-manager",
                10257,
                [
                    f"--root-ca-file={pki.certificate}",
                    f"--service-account-private-key-file={pki.accounts}",
                    "--use-service-account-credentials",
                    "--allocate-node-cidrs",
                    f"--cluster-cidr={PODS}",
                    f"--service-cluster-ip-range={SERVICES}",
                    f"--node-monitor-grace-period={seconds(40):.0f}s",
                ],
            ),
        ):
            config = pki.kubeconfig(self.server, f"system:{name}")
            self._run(
                name, f"--kubeconfig={config}", "--leader-elect=false",
                f"--authentication-kubeconfig={config}", f"--authorization-kubeconfig={config}",
                f"--cert-dir={self._directory}/{name}", *more,
            )  # fmt: skip
            self._until_ready(name, lambda port=port: _answers(f"https://127.0.0.1:{port}/healthz"))

    def _until_ready(self, what: str, ready: Callable[[], bool]) -> None:
        def look() -> bool:
            self.check()
            return ready()

        try:
            eventually(look, f"readiness of {what}", 60)
        except AssertionError:
            print(self._running[-1].tail())
            raise

    def _api_ready(self) -> bool:
        try:
            return self.api.text("GET", "readyz") == "ok"
        except ssl.SSLCertVerificationError:
            raise
        except (OSError, ApiError):
            return False


def _answers(url: str) -> bool:
    """Whether it answers with a success, whatever its certificate."""
    context = ssl._create_unverified_context() if url.startswith("https") else None
    try:
        with urllib.request.urlopen(url, timeout=seconds(2), context=context) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
