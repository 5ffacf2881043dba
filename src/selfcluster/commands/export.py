"""`selfcluster export`: a network, or the clusters, for other tools."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfcluster.files import make_writable, write_atomically
from selfcluster.randomness import keeps_random_state
from selfcluster.runs.folder import check_finished
from selfcluster.settings.files import run_source

if TYPE_CHECKING:
    from selfcluster.data.sources import Source

HELP = "write the network or the clusters for other tools"
_NETWORK = ("safetensors", "onnx")
_CLUSTERS = {  # of each format the file or folder in RUN/export
    "csv": "clusters.csv",
    "parquet": "clusters.parquet",
    "coco": "coco.json",
    "fiftyone": "labels.json",
    "label-studio": "label-studio.json",
    "contact-sheets": "contact-sheets",
}


@keeps_random_state
def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    format: str = "safetensors",
    normalize_inside: bool = False,
    data: Any = None,
) -> dict[str, Any]:
    """Write a network for other tools (`timm.create_model(**json, checkpoint_path=weights)` rebuilds it), or clusters.

    Args:
        run: a run folder, or another network ("starter", "timm:NAME", a weights file).
        out: output folder, default RUN/export. For clusters: the file, or the folder of the contact sheets.
        format: for the network:
            - safetensors writes `backbone.safetensors` and `backbone.json`;
            - onnx writes `backbone.onnx`; its metadata say how to prepare images (needs the extra `onnx`).

            For the clusters, with the names, merges and splits of `curation.jsonl`:
            - csv, parquet and coco;
            - fiftyone: labels.json of a FiftyOneImageClassificationDataset;
            - label-studio: tasks with predictions, and the interface as .xml;
            - contact-sheets: PNG and PDF.
        normalize_inside: with onnx: the exported network takes pixels in 0..1 and normalizes them itself.
        data: the new place of the images, if they have moved; used by coco and contact-sheets.

    Returns:
        weights, architecture, a note, and the arguments of `create_model`. The note is "" unless the network has Sobel
        input. Then it says if the Sobel filters could be folded into the first layer, and where the folded network is
        exact. For clusters: out, images, clusters.
    """
    if format not in (*_NETWORK, *_CLUSTERS):
        raise ValueError(f"--format {format}: choose one of {', '.join((*_NETWORK, *_CLUSTERS))}")
    if normalize_inside and format != "onnx":
        raise ValueError("--normalize-inside needs --format onnx, because safetensors files hold weights only")
    if out is None and not Path(run).is_dir():
        from selfcluster.models.origin import check_word

        check_word(str(run))
        raise ValueError(f"export: {run} is not a folder; name a folder for the export with --out")
    if format in _CLUSTERS:
        return _export_clusters(
            Path(run), Path(run) / "export" / _CLUSTERS[format] if out is None else Path(out), format, data
        )
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


def _export_clusters(run: Path, out: Path, format: str, data: Any) -> dict[str, Any]:
    from selfcluster.runs import exchange
    from selfcluster.runs.groups import read_groups

    ending = Path(_CLUSTERS[format]).suffix
    if out.suffix != ending and ending:
        raise ValueError(f"--out {out}: the file name must end in {ending}")
    groups = read_groups(run)
    result = {"out": str(out), "images": len(groups), "clusters": sum(number >= 0 for number in groups.numbers)}
    make_writable(out.parent)
    if format in ("csv", "parquet"):
        exchange.write_groups(out, groups)
    elif format == "contact-sheets":
        from selfcluster.reporting.contact import write_contact_sheets

        files = write_contact_sheets(groups, run_source(run, data), out)
        return result | {"files": [str(file) for file in files]}
    elif format == "coco":
        write_atomically(out, json.dumps(exchange.coco(groups, _sizes(run_source(run, data), groups.ids))))
    elif format == "fiftyone":
        write_atomically(out, json.dumps(exchange.fiftyone(groups)))
    else:
        write_atomically(out, json.dumps(exchange.label_studio(groups)))
        write_atomically(out.with_suffix(".xml"), exchange.label_studio_interface(groups))
    return result


def _sizes(source: Source, ids: list[str]) -> list[tuple[int, int]]:
    """Width and height of each image as it is stored."""
    from selfcluster.data.images import open_row

    place = {name: row for row, name in enumerate(source.ids)}
    missing = next((name for name in ids if name not in place), None)
    if missing is not None:
        raise ValueError(f"image {missing!r} of the run is not in {source.where}; name the images with --data")
    return [open_row(source, place[name], in_time=True).stored_size for name in ids]


def add_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, starter, timm:NAME, FILE, NETWORK=FILE or an export")
    parser.add_argument("--out", help="folder or file; default in RUN/export")
    parser.add_argument(
        "--format", default="safetensors", help=", ".join((*_NETWORK, *_CLUSTERS)) + "; default safetensors"
    )
    parser.add_argument("--data", help="new place of the images, if they have moved; for coco and contact-sheets")
    parser.add_argument(
        "--normalize-inside",
        action="store_true",
        help="onnx: the exported network takes pixels in 0..1 and normalizes them itself",
    )
    parser.set_defaults(run_command=run_command)


def run_command(run: str, out: str | None, **settings: Any) -> tuple[object, str]:
    result = export(run, out, **settings)
    if "out" in result:
        return result, f"{result['out']}: {result['images']:,} images in {result['clusters']} clusters"
    return result, "\n".join(result[name] for name in ("weights", "architecture", "note") if result.get(name))
