"""Makes engine_pb2.py and engine_pb2.pyi of engine.proto: python -m vs3r.engine.proto.generate

Needs grpcio-tools (in the extra "dev"). What it makes is committed; a test compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vs3r.errors import OutputError

HERE = Path(__file__).parent
PROTO = "vs3r/v1/engine.proto"


def generate(target: Path) -> None:
    """Write the modules below `target`.

    Raises:
        OutputError: protoc found a mistake in the file; it has told which on standard error.
    """
    import grpc_tools
    from grpc_tools import protoc

    include = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [f"-I{HERE}", f"-I{include}", f"--python_out={target}", f"--pyi_out={target}", PROTO]
    if protoc.main(["protoc", *arguments]) != 0:
        raise OutputError(f"protoc refused {PROTO}; mend what it names")


if __name__ == "__main__":
    generate(HERE if len(sys.argv) < 2 else Path(sys.argv[1]))
