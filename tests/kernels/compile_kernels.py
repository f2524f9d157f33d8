"""Compile the kernels for GPUs, without one: python -m tests.kernels.compile_kernels.

A process of its own, because Triton decides at its import whether it interprets. Prints a line per kernel and
architecture, with the bytes of machine code; the compiler's error ends it.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vs3r.kernels.camera import PARAMETERS
from vs3r.kernels.camera import triton_impl as camera
from vs3r.kernels.compose import triton_impl as compose
from vs3r.kernels.compose.layers import MAX_LAYERS
from vs3r.kernels.rigid_flow import triton_impl as rigid_flow
from vs3r.kernels.splat import triton_discs as discs
from vs3r.kernels.splat import triton_impl as splat

CAPABILITIES = (80, 89, 90, 100)
POINTERS = {
    **dict.fromkeys(("best", "last", "sums"), "*i64"),
    **dict.fromkeys(("source_of", "source_out", "table"), "*i32"),
    **dict.fromkeys(("valid", "dynamic", "semantic", "mask_out", "status_out", "valid_out"), "*u8"),
    **dict.fromkeys(
        ("K_src", "K_dst", "K_source", "K", "dst_from_src", "view_from_source", "source_from_view"), "*fp32"
    ),
    **dict.fromkeys(("tau", "residual_out", "flow_out", "through", "attributes_out", "depth_out"), "*fp32"),
    **dict.fromkeys(("opacity", "margin", "keep", "offsets"), "*fp32"),
}
"""Arguments whose type is the same in every case."""
FLOATS = {"distortion", "p0", "p1", "p2", "p3", "limit", "radius2", "tolerance", "per_tolerance", "per_feather", "peak"}
SOURCES = {"HAS_DEPTH": True, "HAS_VALID": True, "HAS_DYNAMIC": True, "HAS_SOURCE": False}
WORLD = {"HAS_DEPTH": False, "HAS_VALID": False, "HAS_DYNAMIC": True, "HAS_SOURCE": True}


def cases(i: int) -> Iterator[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Every kernel: types of the arguments that differ from case to case, constants. Five variants, i from 0 to 4,
    which have each camera model and each branch among them."""
    poses = {"to": ("*fp32", "*fp64")[i % 2], "origin": "*fp32", "out": "*fp32"}
    yield camera.relative_kernel, poses, {"BLOCK": 128}
    floats, pixels = ("*fp32", "*bf16", "*fp16")[i % 3], ("*u8", "*u16", "*fp16")[i % 3]
    more, bends = i % 2 == 1, {"BENDS": i in (2, 4)}
    types = {"inv_depth": floats, "flow": floats}
    given: dict[str, Any] = {"PACKED": i < 2, "HAS_SEMANTIC": more, "WITH_FLOW": more, **bends}
    yield rigid_flow.rigid_flow_kernel, types, {**given, "PARTS": rigid_flow.MANY, "BLOCK": rigid_flow.BLOCK}
    given = {**(WORLD if more else SOURCES), "ROLLING": i == 2, "MODEL": i, **bends}
    tile, block = {"ROWS": splat.ROWS, "COLUMNS": splat.COLUMNS}, {"BLOCK": discs.BLOCK}
    types = {"places": floats, "attributes": "*bf16" if more else "*u8", "largest": "*fp32"}
    yield splat.nearest_kernel, types, {**given, **tile}
    yield splat.sum_kernel, types, {**given, **tile, "STRIP": splat.STRIP, "CHANNELS": i}
    yield discs.next_kernel, types, {**given, **block, "REACH": 6}
    yield discs.shade_kernel, types, {**given, **block, "CHANNELS": i}
    yield splat.largest_kernel, {"values": types["attributes"], "largest": "*i32"}, {"BLOCK": 4 * splat.BLOCK}
    yield splat.mean_kernel, {"largest": "*fp32"}, {"HAS_SOURCE": more, "CHANNELS": i, "BLOCK": splat.BLOCK}
    pictures = [f"p{number}" for number in range(MAX_LAYERS)]
    types = {**dict.fromkeys((*pictures, "out"), pixels), "x": "*fp32", "y": "*fp32"}
    given = {"HAS_OFFSETS": more, "INTEGER": pixels != "*fp16"}
    yield compose.compose_kernel, types, {**given, "ROWS": compose.ROWS, "COLUMNS": compose.COLUMNS}


def main() -> None:
    for i in range(len(PARAMETERS)):
        capability = CAPABILITIES[i % len(CAPABILITIES)]
        for kernel, types, constants in cases(i):
            known = {**POINTERS, **dict.fromkeys(FLOATS, "fp32"), **types, **dict.fromkeys(constants, "constexpr")}
            signature = {name: known.get(name, "i32") for name in inspect.signature(kernel.fn).parameters}
            source = ASTSource(kernel, signature, {(list(signature).index(n),): v for n, v in constants.items()})
            compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            sys.stdout.write(f"{kernel.fn.__name__} sm_{capability} {len(compiled.asm['cubin'])}\n")


if __name__ == "__main__":
    main()
