# SPDX-License-Identifier: Apache-2.0
"""Generate criagent/_proto from the .proto files: `make proto`.

With `--check`, generate elsewhere and say which files of criagent/_proto differ; `make check` does.
"""

from __future__ import annotations

import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
OUT = ROOT.parent / "criagent" / "_proto"
LICENCE = "# SPDX-License-Identifier: Apache-2.0\n"
# Import paths of generated modules follow the proto path, so they are rewritten to the package.
SERVICES = ("cri/v1/api.proto", "criagent/v1/admin.proto")
MESSAGES = (
    "criagent/v1/containerd.proto",  # served under names that are not their own
    "nri/v1alpha1/nri.proto",  # carried by ttrpc, not by gRPC
    "nri/v1alpha1/ttrpc.proto",
)


def generate(out: Path) -> int:
    """Write the generated modules of each source into `out`.

    `*_pb2.py` and `*_pb2.pyi`, and `*_pb2_grpc.py` for those with services.
    """
    include = str(resources.files("grpc_tools") / "_proto")
    for source in (*SERVICES, *MESSAGES):
        folder = ROOT / Path(source).parent
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={folder}",
                f"--proto_path={include}",
                f"--python_out={out}",
                f"--pyi_out={out}",
                *([f"--grpc_python_out={out}"] if source in SERVICES else []),
                str(folder / Path(source).name),
            ]
        )
        if status:
            return int(status)
    for stub in out.glob("*_pb2_grpc.py"):
        name = stub.name.removesuffix("_grpc.py")
        text = stub.read_text()
        stub.write_text(text.replace(f"import {name} as", f"from criagent._proto import {name} as"))
    for made in out.glob("*_pb2*.py*"):
        made.write_text(LICENCE + made.read_text())
    return 0


def stale() -> list[str]:
    """Files of criagent/_proto that are not what the sources give, and those that are missing."""
    with tempfile.TemporaryDirectory() as folder:
        if generate(Path(folder)):
            return ["proto/"]
        fresh = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    there = {file.name: file.read_bytes() for file in OUT.glob("*_pb2*.py*")}
    return sorted(n for n in fresh.keys() | there.keys() if fresh.get(n) != there.get(n))


def main() -> int:
    """Status 1 when something cannot be generated, or differs with `--check`."""
    if "--check" not in sys.argv[1:]:
        return generate(OUT)
    found = stale()
    for name in found:
        print(f"criagent/_proto/{name} is not what proto/ gives; run `make proto` and commit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
