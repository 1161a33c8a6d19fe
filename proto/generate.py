"""Generate criagent/_proto from the .proto files: `make proto`; then a clean diff is a check."""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
OUT = ROOT.parent / "criagent" / "_proto"
# Import paths of generated modules follow the proto path, so they are rewritten to the package.
SERVICES = ("cri/v1/api.proto", "criagent/v1/admin.proto")
MESSAGES = ("criagent/v1/containerd.proto",)  # served under names that are not their own


def main() -> int:
    """Write `*_pb2.py` and `*_pb2.pyi` for each source, `*_pb2_grpc.py` for those with services."""
    include = str(resources.files("grpc_tools") / "_proto")
    for source in (*SERVICES, *MESSAGES):
        folder = ROOT / Path(source).parent
        status = protoc.main(
            [
                "protoc",
                f"--proto_path={folder}",
                f"--proto_path={include}",
                f"--python_out={OUT}",
                f"--pyi_out={OUT}",
                *([f"--grpc_python_out={OUT}"] if source in SERVICES else []),
                str(folder / Path(source).name),
            ]
        )
        if status:
            return status
    for stub in OUT.glob("*_pb2_grpc.py"):
        name = stub.name.removesuffix("_grpc.py")
        text = stub.read_text()
        stub.write_text(text.replace(f"import {name} as", f"from criagent._proto import {name} as"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
