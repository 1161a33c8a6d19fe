# SPDX-License-Identifier: Apache-2.0
"""The flame graph of one pod: samples of perf and of py-spy, as one tree of milliseconds."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from tests.bench.flame_fold import folded, kernel_path, python_stacks, samples
from tests.bench.flame_svg import drawn

PERF = """\
python3   100/100
\tffffffff81a vfs_read ([kernel.kallsyms])
\tffffffff81b ksys_read ([kernel.kallsyms])
\tffffffff81c do_syscall_64 ([kernel.kallsyms])
\tffffffff81d entry_SYSCALL_64_after_hwframe ([kernel.kallsyms])
\t    7f0000 [unknown] (/usr/lib/libc.so.6)

python3   100/100
\t    7f0000 _PyEval_EvalFrameDefault (/usr/bin/python3.13)

python3   100/104
\t    7f0000 _PyEval_EvalFrameDefault (/usr/bin/python3.13)

event_engine   100/105
\t    7f0000 [unknown] (/usr/lib/cygrpc.so)

37   200/200
\t    7f0000 main (/memfd:crun (deleted))

37   200/200
\tffffffff81a copy_tree ([kernel.kallsyms])
\tffffffff81b __x64_sys_unshare ([kernel.kallsyms])
"""
LOOP = "thread (7): MainThread;main (x.py:1);Handle._run (asyncio/events.py:89)"
SPY = f"""\
{LOOP};create (criagent/verbs/create.py:12) 1
{LOOP};spawn (c.py:1);Popen._posix_spawn (subprocess.py:1801) 9
thread (9): fs_0;_WorkItem.run (thread.py:59);write (criagent/files.py:3) 1
"""


def test_every_sample_of_perf_is_in_the_tree_once() -> None:
    root = folded(PERF, SPY, 100, 2.0)
    assert root.value == 12.0
    assert {name: frame.value for name, frame in root.within.items()} == {
        "criagent": 8.0,
        "crun": 4.0,
    }
    assert set(root.within["crun"].within) == {"kernel", "memfd:crun"}
    agent = root.within["criagent"].within
    assert {name: frame.value for name, frame in agent.items()} == {
        "kernel": 2.0,
        "gRPC's own threads": 2.0,
        "event loop": 2.0,  # half of what perf found in Python, as py-spy has one sample of two
        "file threads": 2.0,
    }
    assert "create (criagent/verbs/create)" in agent["event loop"].within


def test_a_system_call_is_the_first_frame_of_the_kernel() -> None:
    sample = next(samples(PERF))
    assert kernel_path(sample.frames) == ["kernel", "read(2)", "vfs_read"]


def test_time_in_which_another_process_runs_is_not_pythons() -> None:
    assert sum(count for _, count in python_stacks(SPY)) == 2


def test_the_picture_is_xml_and_as_wide_as_the_time() -> None:
    svg = ET.fromstring(drawn(folded(PERF, SPY, 100, 2.0), 'a <"title">'))
    rects = svg.findall(".//{*}g/{*}g/{*}rect")
    widths = {rect.get("width") for rect in rects}
    assert {"1200.0", "800.0", "400.0", "200.0"} <= widths
