# SPDX-License-Identifier: Apache-2.0
"""Pods one after the other for a profiler; `flame.py` runs this in the test node.

The profiler runs only while pods start: this prints "start" before and "end" after, and waits for
a line each time. With the path of py-spy it records the agent itself meanwhile.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from tests.bench.measure import down, one_pod
from tests.support.cri_client import BUSYBOX, Cri

_RATE_HZ = 1000


def main() -> None:
    number, spy = int(sys.argv[1]), sys.argv[2:]
    cri = Cri()
    cri.pull(BUSYBOX)
    for warm in range(5):
        down(cri, *one_pod(cri, f"warm-{warm}")[:2])
    print("start", flush=True)
    sys.stdin.readline()
    recorder = None
    if spy:
        pid = Path("/run/criagent.pid").read_text().strip()
        recorder = subprocess.Popen(
            [spy[0], "record", "--pid", pid, "--rate", str(_RATE_HZ), "--gil", "--nonblocking",
             "--threads", "--format", "raw", "--output", spy[1]],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert recorder.stdout is not None
        # It prints this when it has read the agent's symbols, and nothing more until its end.
        while "Sampling process" not in (line := recorder.stdout.readline()):
            if not line:
                raise SystemExit("py-spy ended before it had begun")
    pods = [one_pod(cri, f"flame-{number}") for number in range(number)]
    if recorder is not None:
        recorder.send_signal(signal.SIGINT)
        recorder.communicate()
    print("end", flush=True)
    sys.stdin.readline()
    for sandbox, _, _ in pods:
        cri.remove_pod(sandbox)


if __name__ == "__main__":
    main()
