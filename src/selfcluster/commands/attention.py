"""`selfcluster attention`: what a vision transformer looks at."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfcluster.randomness import keeps_random_state

HELP = "draw the attention maps of a vision transformer"


@keeps_random_state
def attention(
    run: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    share: float = 0.6,
    image_size: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Draw how much each patch of an image is attended to by the class token in a vision transformer's last block.

    Args:
        run: a run folder, `timm:NAME`, a weights file, NETWORK=FILE or an exported backbone. A plain timm name is a
            network with random weights, which gives a warning.
        images: image files; the middle square of each is shown to the network.
        out: folder for NAME-head-1.png and so on, one picture per head, and NAME-mask.png; default RUN/attention.
        share: the mask is the smallest set of patches that holds this share of the mean attention of the heads.
        image_size: side in pixels of what the network gets; default: its own. A larger side gives finer maps.
        device: cpu, cuda or auto.

    Returns:
        out, heads, grid (patches down and across) and pictures (all files).

    Raises:
        ValueError: the network is no vision transformer, or no image file is given.
    """
    from selfcluster.reporting.attention import write_attention

    return write_attention(Path(run), [Path(i) for i in images], out, share, image_size, device)


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument(
        "run",
        metavar="RUN",
        help="run folder, timm:NAME, FILE, NETWORK=FILE or an export; its network must be a vision transformer",
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--out", help="folder for the pictures; default RUN/attention")
    parser.add_argument(
        "--share",
        type=float,
        metavar="X",
        default=0.6,
        help="the mask shows the patches that hold this share of the attention; default 0.6",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="side in pixels of what the network gets; default: its own; a larger side gives finer maps",
    )
    parser.add_argument("--device", metavar="DEVICE", default="auto", help="cpu, cuda or auto")
    parser.set_defaults(run_command=run_command)


def run_command(**settings: Any) -> tuple[object, str]:
    result = attention(**settings)
    down, across = result["grid"]
    heads = f"{result['heads']} attention map{'' if result['heads'] == 1 else 's'} ({down} x {across} patches)"
    return result, f"{result['out']}: for each image, {heads} and a mask"
