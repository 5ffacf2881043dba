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


PRODUCT = dict.fromkeys(("rows", "low", "factors", "more"), "*fp16")
PROPOSE = PRODUCT | {"group": "*i32", "largest": F, "other": F, "n": WHOLE, "padded": WHOLE}
ROWS = {"x": F, "centroids": F}
FOUND = {"labels": "*i64", "distances": F, "listed": "*i32", "count": "*i32"}
for width in (256, 512):
    tile = 1 if width <= assign._WIDE else 2
    blocks = {"BLOCK_N": assign._ROWS // tile, "BLOCK_K": assign._CENTROIDS // tile, "BLOCK_D": width}
    more = {"NOTHING": assign._NOTHING, "WIDEN": False}
    compiled(assign._propose, PROPOSE, blocks | more, num_warps=assign._WARPS // tile, num_stages=assign._STAGES)
    types = (
        ROWS | {"group": "*i32", "largest": F, "other": F, "bound": F} | FOUND | {"n": WHOLE, "d": WHOLE, "k": WHOLE}
    )
    compiled(assign._choose, types, blocks | {"BLOCK_N": assign._CHOSEN, "EPS32": assign._EPS32})
    types = ROWS | PRODUCT | {"least": F} | FOUND | {"d": WHOLE, "k": WHOLE, "padded": WHOLE}
    square = {"BLOCK_N": assign._LISTED, "BLOCK_K": assign._SETTLED, "BLOCK_D": width}
    compiled(assign._settle, types, square | {"PART": assign._EXACT_DIMENSIONS, "WIDEN": False}, num_stages=1)
PREPARE = {"x": F, "middle": F, "power": "*i32", "longest": F, "rounding": F, "rows": "*fp16", "factors": "*fp16"}
PREPARE |= {"bound": F, "n": WHOLE, "d": WHOLE}
constants = {"BLOCK_N": assign._PREPARED, "BLOCK_D": 512, "EPS": assign._EPS, "PACKED": assign._PACKED}
compiled(assign._prepare, PREPARE, constants)
ADD = {"sums": "*fp64", "x": F, "order": "*i64", "ends": "*i64", "weights": "*fp64", "d": WHOLE}
compiled(sums._add, ADD, {"WEIGHTED": True, "BLOCK_N": sums._ROWS, "BLOCK_D": sums._DIMENSIONS})
SCORES = {"scores": F, "stride": WHOLE, "top": F}
SCALES = {"n": WHOLE, "k": WHOLE, "scale": "fp32", "lowest": "fp32"}
TILE = {"BLOCK_N": 2, "BLOCK_K": sinkhorn._MOST_COLUMNS}
for by_row in (True, False):
    types = SCORES | {"factor": F, "partial": F} | SCALES
    compiled(sinkhorn._sum_columns, types, {"BY_ROW": by_row, **TILE}, num_warps=8)
compiled(sinkhorn._write_codes, SCORES | {"u": F, "out": F} | SCALES, TILE, num_warps=8)
PASS = {"scores": F, "stride": WHOLE, "extra": F, "extra_stride": WHOLE, "out": F, "top": F, "tops": F, "partial": F}
PASS |= {"total": F, "arrived": "*i32", "n": WHOLE, "q": WHOLE, "k": WHOLE, "scale": "fp32", "lowest": "fp32"}
PASS |= dict.fromkeys(("programs", "first", "last", "passes"), WHOLE)
for width in (sinkhorn._SMALL, sinkhorn._MOST_COLUMNS):
    blocks = {"BLOCK_N": 1, "BLOCK_K": width, "BLOCK_C": 32, "BLOCK_P": 512, "PARTS": sinkhorn._PARTS}
    options = {"num_warps": sinkhorn._WARPS, "maxnreg": sinkhorn._REGISTERS, "launch_cooperative_grid": True}
    compiled(sinkhorn._balance, PASS, blocks | {"EXTRA": True, "UNIT": 4}, **options)
CONSTANTS = dict.fromkeys(("m0", "m1", "m2", "s0", "s1", "s2"), "fp32")
TABLE = {"numbers": F, "codes": "*i32"}
compiled(views._recolor, {"x": F} | TABLE | {"pixels": WHOLE} | CONSTANTS, {"TILE": views._TILE})
CUT = {"images": "*u8", "boxes": F, "out": F, "size": WHOLE}
CUT |= dict.fromkeys(("s_image", "s_channel", "s_row", "s_column"), WHOLE)
compiled(views._cut, CUT, {"CHANNELS": 3, "TILE": views._TILE})
SIZE = {"height": WHOLE, "width": WHOLE}
compiled(views._blur_rows, {"x": F, "out": F, "rows": "*i32", "numbers": F} | SIZE, {"TILE": views._TILE})
BLUR = {"source": F, "x": F, "rows": "*i32"} | TABLE | SIZE | CONSTANTS
compiled(views._blur_columns, BLUR, {"TILE": views._TILE})
