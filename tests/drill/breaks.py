# SPDX-License-Identifier: Apache-2.0
"""How each node of the drill is broken: scripts by the heading of the page, run as root on it."""

from __future__ import annotations

from typing import NamedTuple


class Break(NamedTuple):
    """`script` breaks the node; `afterwards` takes away what the drill alone had put there."""

    script: str
    afterwards: str = ""


_DROP_IN = "/etc/criagent/config.d/90-local.toml"
_RESTART = "systemctl restart criagent || true"
_STATE = "/var/lib/criagent"
_HOSTS = "/etc/criagent/certs.d/registry.example/hosts.toml"
_SETS_ASIDE = f"rm -f {_DROP_IN}.off"

BREAKS = {
    "A wrong key in the configuration": Break(
        rf"""printf '[network]\nbackned = "cni"\n' > {_DROP_IN}; {_RESTART}""", _SETS_ASIDE
    ),
    "A TLS file is missing": Break(
        rf"""printf '[streaming]\ntls_cert = "/etc/criagent/streaming.crt"\n' > {_DROP_IN}
        printf 'tls_key = "/etc/criagent/streaming.key"\n' >> {_DROP_IN}; {_RESTART}""",
        f"rm {_DROP_IN} /etc/criagent/streaming.*; systemctl restart criagent",
    ),
    "The state database is damaged": Break(
        f"""systemctl stop criagent
        dd if=/dev/urandom of={_STATE}/state.db bs=4096 count=4 conv=notrunc status=none
        systemctl start criagent || true"""
    ),
    "The state database is of another program": Break(
        f"""systemctl stop criagent; rm {_STATE}/state.db*
        python3 -c 'import sqlite3
sqlite3.connect("{_STATE}/state.db").execute("CREATE TABLE other (name TEXT)")'
        systemctl start criagent || true"""
    ),
    "The state database is of a newer version": Break(
        f"""systemctl stop criagent
        python3 - <<'END'
import shutil, sqlite3
db = sqlite3.connect("{_STATE}/state.db")
(version,) = db.execute("PRAGMA user_version").fetchone()
db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
shutil.copy("{_STATE}/state.db", f"{_STATE}/state.db.v{{version}}")
db.execute("CREATE TABLE later (name TEXT)")
db.execute(f"PRAGMA user_version = {{version + 1}}")
db.commit()
END
        systemctl start criagent || true"""
    ),
    "Another storage driver is configured": Break(
        rf"""printf '[storage]\ndriver = "native"\n' > {_DROP_IN}; {_RESTART}""", _SETS_ASIDE
    ),
    "A second agent has the root directory": Break(
        """systemctl stop criagent
        systemd-run --quiet --unit=drill --service-type=notify criagent serve
        systemctl start criagent || true"""
    ),
    "A directory is where the socket belongs": Break(
        """systemctl stop criagent; mkdir -p /run/criagent/criagent.sock
        systemctl start criagent || true"""
    ),
    "The disk is read-only": Break(
        f"""systemctl stop criagent; mount -o remount,ro {_STATE}
        systemctl start criagent || true"""
    ),
    "The unit is masked": Break(
        "systemctl disable --quiet --now criagent; systemctl mask --quiet criagent"
    ),
    "The OCI runtime is gone": Break("rm /usr/bin/crun"),
    "conmon is missing at the start": Break(f"rm /usr/bin/conmon; {_RESTART}"),
    "D-Bus does not run": Break("systemctl stop dbus.socket dbus.service"),
    "The agent hangs": Break("systemctl kill --signal=STOP --kill-whom=main criagent"),
    'A drop-in "hardens" the unit': Break(
        r"""mkdir -p /etc/systemd/system/criagent.service.d
        printf '[Service]\nPrivateTmp=yes\nKillMode=control-group\n' \
            > /etc/systemd/system/criagent.service.d/hardening.conf
        systemctl daemon-reload; systemctl restart criagent"""
    ),
    "The unit of the monitors is masked": Break(
        "systemctl mask --quiet --now criagent-monitors; systemctl restart criagent"
    ),
    # What is left is too small for the image that the drill pulls.
    "Images fill the disk": Break("/root/fill-images"),
    "A container uses up the inodes": Break("/root/use-inodes"),
    "The run directory is full": Break(
        """used=$(df --output=used -k /run | tail -n 1)
        mount -o remount,size=$((used + 4096))k /run
        dd if=/dev/zero of=/run/trace bs=64k status=none || true
        dd if=/dev/zero of=/run/trace bs=1k oflag=append conv=notrunc status=none || true""",
        "mount -o remount,size=1g /run",
    ),
    "Forwarding was switched off": Break("sysctl -qw net.ipv4.ip_forward=0"),
    "The CNI configuration is broken": Break(
        rf"""printf '[network]\nbackend = "cni"\n' > {_DROP_IN}
        echo '{{"cniVersion": "1.0.0", "name": "x"' > /etc/cni/net.d/00-new.conflist
        systemctl restart criagent""",
        f"""crictl rmp --all --force; rm {_DROP_IN} /etc/cni/net.d/00-new.conflist.off
        systemctl restart criagent""",
    ),
    "The certificate of a registry is not trusted": Break(
        f"""/root/registry-with-tls
        echo 'server = "https://registry.example:5443"' > {_HOSTS}""",
        f"""systemctl stop registry-tls
        echo 'server = "http://registry.example:5000"' > {_HOSTS}""",
    ),
    "The proxy does not answer": Break(
        f"""echo HTTP_PROXY=http://127.0.0.1:3128 > /etc/default/criagent; {_RESTART}"""
    ),
    "A layer has lost files": Break(f"rm {_STATE}/snapshots/*/fs/bin/* {_STATE}/blobs/sha256/*"),
    "The port of the metrics is taken": Break(
        """systemctl stop criagent
        systemd-run --quiet --unit=drill python3 -m http.server --bind 127.0.0.1 9880
        until ss -Hltn 'sport = :9880' | grep -q .; do read -rt 0.1 <> <(:) || true; done
        systemctl start criagent"""
    ),
}
