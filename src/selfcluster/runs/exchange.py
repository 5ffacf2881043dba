"""A run's clusters in the forms of other tools: tables, COCO, FiftyOne, Label Studio.

Each function returns or writes what the tool reads, with the names that people gave the clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import pyarrow as pa

from selfcluster.runs.groups import Groups
from selfcluster.runs.tables import write_table

Size = tuple[int, int]  # width, height in pixels


def write_groups(path: Path, groups: Groups) -> None:
    """Write id, path, cluster, name, distance, rubbish and selected, as Parquet or CSV by the file's ending."""
    selected = set(groups.selected)
    table = pa.table(
        {
            "id": groups.ids,
            "path": groups.paths,
            "cluster": groups.clusters,
            "name": [groups.name_of(int(number)) for number in groups.clusters],
            "distance": groups.distances,
            "rubbish": [int(number) in groups.rubbish for number in groups.clusters],
            "selected": [image in selected for image in groups.ids],
        }
    )
    write_table(path, table)


def coco(groups: Groups, sizes: Sequence[Size]) -> dict[str, object]:
    """Return a COCO object-detection dictionary: one box and polygon an image, which
    covers all of it, its category the cluster.

    `sizes` (n,) are the images' sizes as they are stored. Category 1 is the first cluster; images in no cluster have no
    annotation.
    """
    numbers = [number for number in groups.numbers if number >= 0]
    category = {number: place for place, number in enumerate(numbers, start=1)}
    images = [
        {"id": place, "file_name": path, "width": width, "height": height, "selfcluster_id": name}
        for place, (name, path, (width, height)) in enumerate(
            zip(groups.ids, groups.paths, sizes, strict=True), start=1
        )
    ]
    annotations = [
        {
            "id": place,
            "image_id": place,
            "category_id": category[int(number)],
            "bbox": [0, 0, width, height],
            "area": width * height,
            "iscrowd": 0,
            "segmentation": [[0, 0, width, 0, width, height, 0, height]],  # pycocotools' annToMask needs one
        }
        for place, (number, (width, height)) in enumerate(zip(groups.clusters, sizes, strict=True), start=1)
        if number >= 0
    ]
    categories = [{"id": category[number], "name": groups.name_of(number)} for number in numbers]
    return {
        "info": {"description": "selfcluster"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def fiftyone(groups: Groups) -> dict[str, object]:
    """Return the `labels.json` of a FiftyOneImageClassificationDataset; images are named by their whole paths."""
    numbers = [number for number in groups.numbers if number >= 0]
    place = {number: position for position, number in enumerate(numbers)}
    labels = {path: place.get(int(number)) for path, number in zip(groups.paths, groups.clusters, strict=True)}
    return {"classes": [groups.name_of(number) for number in numbers], "labels": labels}


def label_studio(groups: Groups) -> list[dict[str, object]]:
    """Return Label Studio's tasks: one an image, whose cluster is a prediction.

    Label Studio finds the files where local files are served from the root: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=/.
    """

    def prediction(number: int) -> dict[str, object]:
        value = {"choices": [groups.name_of(number)]}
        result = {"from_name": "cluster", "to_name": "image", "type": "choices", "value": value}
        return {"model_version": "selfcluster", "result": [result]}

    return [
        {
            "data": {"image": "/data/local-files/?d=" + quote(path.removeprefix("/")), "id": name},
            "predictions": [prediction(int(number))] if number >= 0 else [],
        }
        for name, path, number in zip(groups.ids, groups.paths, groups.clusters, strict=True)
    ]


def label_studio_interface(groups: Groups) -> str:
    """Return the labeling interface that fits `label_studio`'s tasks: the image, and a choice of the clusters."""
    numbers = [number for number in groups.numbers if number >= 0]
    choices = "\n".join(f"    <Choice value={quoteattr(groups.name_of(number))}/>" for number in numbers)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="cluster" toName="image">\n{choices}\n  </Choices>\n</View>\n'
    )
