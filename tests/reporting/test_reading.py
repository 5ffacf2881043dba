"""One reading of each image gives a page its small pictures, what is seen in the pixels, and EXIF."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from PIL import Image

from selfcluster.data.sources import open_source
from selfcluster.reporting.page import write_report
from tests.reporting.folders import make_run

CAMERAS = {"north": ("Canon", "EOS 40D", "2008:05:30 10:00:00"), "south": ("Apple", "iPhone 4", "2011:01:13 12:00:00")}


def photograph(path, shade, camera=None):
    exif = Image.Exif()
    if camera is not None:
        exif[271], exif[272], exif[306] = CAMERAS[camera]
    rng = np.random.default_rng(shade)
    Image.fromarray(rng.integers(0, 256, (60, 50, 3), np.uint8)).save(path, exif=exif)


@pytest.fixture
def photographs(tmp_path):
    """24 photographs in 3 clusters: cluster 0 is of one camera, 1 of both by halves, 2 has no EXIF."""
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{n:02}.jpg" for n in range(24)]
    for n, name in enumerate(names):
        camera = {0: "north", 1: "north" if n % 2 else "south", 2: None}[n % 3]
        photograph(folder / name, n, camera)
    return make_run(tmp_path / "run", names), open_source(str(folder))


def test_without_a_table_the_columns_are_those_of_exif(photographs):
    run, source = photographs
    said = []
    text = write_report(run, source, landmarks=0, progress=said.append).read_text()
    options = ['<option value="values0">camera</option>', '<option value="values1">day</option>']
    assert all(option in text for option in options)
    assert ">place</option>" not in text
    cards = {n: text.split(f'id="cluster-{n}"')[1].split("</article>")[0] for n in range(3)}
    assert "camera: 100% “Canon EOS 40D”" in cards[0]
    assert "day: 100% “2008-05-30”" in cards[0]
    assert "camera: 50% “" in cards[1]
    assert "camera: " not in cards[2]
    assert any("24 images" in line and "16 have EXIF" in line for line in said)


def test_a_table_takes_the_place_of_exif(photographs, tmp_path):
    run, source = photographs
    table = tmp_path / "known.csv"
    table.write_text("id,shop\n" + "".join(f"{name},{n % 2}\n" for n, name in enumerate(source.ids)))
    text = write_report(run, source, landmarks=0, metadata=table).read_text()
    assert ">shop</option>" in text
    assert ">camera</option>" not in text


def test_a_page_reads_each_image_once_and_those_of_the_cards_twice(photographs, monkeypatch):
    run, source = photographs
    lock, read, counts = threading.Lock(), source.read, dict.fromkeys(range(24), 0)

    def counted(i):
        with lock:
            counts[i] += 1
        return read(i)

    monkeypatch.setattr(source, "read", counted)
    text = write_report(run, source, landmarks=0).read_text()
    shown = {n for n in range(24) if f'data-row="{n}"' in text}
    assert shown
    assert {i: 1 + (i in shown) for i in range(24)} == counts


def test_an_image_that_cannot_be_decoded_is_missing_and_the_others_are_there(photographs):
    run, source = photographs
    (run.parent / "photos" / "05.jpg").write_bytes(b"no image")
    text = write_report(run, source, landmarks=0).read_text()
    album = json.loads(text.split('id="album">')[1].split("</script>")[0])
    assert [album["ids"][i] for i in album["missing"]] == ["05.jpg"]
