"""`selfcluster export`: a network for other tools."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from selfcluster.files import make_writable
from selfcluster.runs.folder import check_finished

HELP = "a network for other tools"


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    format: str = "safetensors",
    normalize_inside: bool = False,
) -> dict[str, Any]:
    """Write a network for other tools: `timm.create_model(**json, checkpoint_path=weights)` rebuilds it.

    Args:
        run: a run folder, or another word for a network ("starter", "timm:NAME", a weights file).
        out: folder for what is written; default RUN/export.
        format: safetensors for `backbone.safetensors` and `backbone.json`; onnx for `backbone.onnx`, whose metadata
            say how its images are prepared (needs the extra `onnx`).
        normalize_inside: with onnx: the file takes pixels in 0..1 and normalizes them itself.

    Returns:
        weights, architecture, a note ("" but for networks of edges: whether the filters could be folded into the first
        layer, and where that is exact), and the arguments of `create_model`.
    """
    if format not in ("safetensors", "onnx"):
        raise ValueError(f"--format {format}: choose safetensors or onnx")
    if normalize_inside and format != "onnx":
        raise ValueError("--normalize-inside needs --format onnx: safetensors hold weights, and no operations")
    if out is None and not Path(run).is_dir():
        raise ValueError(f"export: {run} is no folder; name the folder of the export with --out")
    from selfcluster.models.backbones import save_backbone
    from selfcluster.models.folding import for_images
    from selfcluster.training.load import load_network

    if Path(run).is_dir():
        check_finished(Path(run))
    network = load_network(str(run))
    images, folder = network.preprocessing, Path(out) if out is not None else Path(run) / "export"
    make_writable(folder)
    shape = images.mean, images.std, images.image_size
    if format == "onnx":
        from selfcluster.models.onnx import export_onnx

        metadata = export_onnx(folder, network.module, *shape, normalize_inside=normalize_inside)
        return {"weights": str(folder / "backbone.onnx"), **metadata}
    module, account = for_images(network.module)
    weights = save_backbone(folder, module, *shape)
    return {"weights": str(weights), "architecture": str(folder / "backbone.json"), "note": account, **module.spec}


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, or another word for a network")
    parser.add_argument("--out", help="folder; default RUN/export")
    parser.add_argument("--format", default="safetensors", help="safetensors (default) or onnx")
    parser.add_argument(
        "--normalize-inside", action="store_true", help="onnx: take pixels in 0..1 and normalize them in the file"
    )
    parser.set_defaults(run_command=run_command)


def run_command(run: str, out: str | None, **settings: Any) -> tuple[Any, str]:
    result = export(run, out, **settings)
    return result, "\n".join(result[name] for name in ("weights", "architecture", "note") if result.get(name))
