"""`selfcluster export`: the trained network for other tools."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from selfcluster.files import make_writable
from selfcluster.runs.folder import check_finished

HELP = "the trained network for other tools"


def export(
    run: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, format: str = "safetensors"
) -> dict[str, Any]:
    """The trained network for other tools: `timm.create_model(**json, checkpoint_path=weights)` rebuilds it.

    Args:
        run: a run folder.
        out: folder for what is written; default RUN/export.
        format: safetensors for `backbone.safetensors` and `backbone.json`; onnx for `backbone.onnx`, which says in its
            metadata how its images are normalized (needs the extra `onnx`).

    Returns:
        weights, architecture, a note ("" but for networks of edges: whether the filters could be folded into the first
        layer, and where that is exact), and the arguments of `create_model`.
    """
    if format not in ("safetensors", "onnx"):
        raise ValueError(f"--format {format}: choose safetensors or onnx")
    from selfcluster.models.backbones import load_backbone, save_backbone
    from selfcluster.models.folding import for_images

    check_finished(Path(run))
    module, mean, std, size = load_backbone(Path(run))
    folder = Path(out) if out is not None else Path(run) / "export"
    make_writable(folder)
    if format == "onnx":
        from selfcluster.models.onnx import export_onnx

        return {"weights": str(folder / "backbone.onnx"), **export_onnx(folder, module, mean, std, size)}
    module, account = for_images(module)
    weights = save_backbone(folder, module, mean, std, size)
    return {"weights": str(weights), "architecture": str(folder / "backbone.json"), "note": account, **module.spec}


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--out", help="folder; default RUN/export")
    parser.add_argument("--format", default="safetensors", help="safetensors (default) or onnx")
    parser.set_defaults(run_command=run_command)


def run_command(run: str, out: str | None, format: str) -> tuple[Any, str]:
    result = export(run, out, format=format)
    return result, "\n".join(result[name] for name in ("weights", "architecture", "note") if result.get(name))
