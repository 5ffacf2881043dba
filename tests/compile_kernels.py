"""Compile the Triton kernels for an H100 or H200 without one: prints a line of JSON for each, with its shared memory.

A program of its own, because the tests' process runs kernels in Triton's interpreter.
"""

import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from selfcluster.clustering.cuda import assign, sinkhorn, sums
from selfcluster.views import cuda as views

TARGET = GPUTarget("cuda", 90, 32)
F, WHOLE = "*fp32", "i32"


def compiled(kernel, types: dict[str, str], constants: dict, **options) -> None:
    signature = types | dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)  # as torch's memory is
    metadata = triton.compile(source, target=TARGET, options=options).metadata
    print(json.dumps({"kernel": kernel.__name__, "shared": metadata.shared}))


PROPOSE = {"rows": "*bf16", "low": "*bf16", "bias": F, "bound": F, "labels": "*i64", "listed": "*i32", "count": "*i32"}
for width in (256, 512):
    tile = 1 if width <= assign._WIDE else 2
    blocks = {"BLOCK_N": assign._ROWS // tile, "BLOCK_K": assign._CENTROIDS // tile, "BLOCK_D": width, "WIDEN": False}
    compiled(assign._propose, PROPOSE | {"n": WHOLE, "padded": WHOLE}, blocks, num_warps=8, num_stages=assign._STAGES)
PREPARE = {"x": F, "middle": F, "longest": F, "rounding": F, "rows": "*bf16", "bound": F, "n": WHOLE, "d": WHOLE}
compiled(assign._prepare, PREPARE, {"BLOCK_N": assign._PREPARED, "BLOCK_D": 512, "EPS32": assign._EPS32})
SETTLE = {"x": F, "centroids": F, "labels": "*i64", "listed": "*i32", "count": "*i32", "d": WHOLE, "k": WHOLE}
compiled(assign._settle, SETTLE, {"BLOCK_K": assign._EXACT_CENTROIDS, "BLOCK_D": assign._EXACT_DIMENSIONS})
ADD = {"sums": "*fp64", "x": F, "order": "*i64", "ends": "*i64", "weights": "*fp64", "d": WHOLE}
compiled(sums._add, ADD, {"WEIGHTED": True, "BLOCK_N": sums._ROWS, "BLOCK_D": sums._DIMENSIONS})
SCORES = {"scores": F, "stride": WHOLE, "top": F}
SCALES = {"n": WHOLE, "k": WHOLE, "scale": "fp32", "lowest": "fp32"}
TILE = {"BLOCK_N": 2, "BLOCK_K": sinkhorn._MOST_COLUMNS}
for by_row in (True, False):
    types = SCORES | {"factor": F, "partial": F} | SCALES
    compiled(sinkhorn._sum_columns, types, {"BY_ROW": by_row, **TILE}, num_warps=8)
compiled(sinkhorn._write_codes, SCORES | {"u": F, "out": F} | SCALES, TILE, num_warps=8)
CONSTANTS = dict.fromkeys(("m0", "m1", "m2", "s0", "s1", "s2"), "fp32")
TABLE = {"numbers": F, "codes": "*i32"}
compiled(views._recolor, {"x": F} | TABLE | {"pixels": WHOLE} | CONSTANTS, {"TILE": views._TILE})
SIZE = {"height": WHOLE, "width": WHOLE}
compiled(views._blur_rows, {"x": F, "out": F, "rows": "*i32", "numbers": F} | SIZE, {"TILE": views._TILE})
BLUR = {"source": F, "x": F, "rows": "*i32"} | TABLE | SIZE | CONSTANTS
compiled(views._blur_columns, BLUR, {"TILE": views._TILE})
