"""The page: complete, self-contained, bounded, and deaf to what file names say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from selfcluster.reporting import reading
from selfcluster.reporting.page import _environment, visible, write_report
from tests.reporting.folders import Pictures, make_run, write_clusters, write_vectors

HOSTILE = [
    "<img src=x onerror=alert(1)>.jpg",
    '"><script>alert(1)</script>.jpg',
    "' onmouseover='alert(1).jpg",
    "</script><svg onload=alert(1)>.jpg",
    "line\nbreak\r\ttab.jpg",
    "\u2028\u2029\u202egpj.exe\x00",
    "emoji \U0001f600 &lt;b&gt; \\xff\\xfe.jpg",
    "{{ 7 * 7 }}{% raw %}.jpg",
    "-->]]><!--.jpg",
    "x" * 4000 + ".jpg",
]


class Page(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.album, self.script = "", "", ""
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script" and "type" in dict(attrs):  # holds data and is never run
            name = dict(attrs)["id"] or ""
            self._open = name if name == "album" else "sheet"

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "album":
            self.album += data
        elif self._open == "script":
            self.script += data
        elif self._open not in ("style", "sheet"):
            self.text += data

    def count(self):
        tags = [tag for tag, _ in self.elements]
        return {tag: tags.count(tag) for tag in set(tags)}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (30, 12, 12, 3), np.uint8)


def names(n=30, of=()):
    return [*of, *(f"plain {i:02}.jpg" for i in range(n - len(of)))]


def written(run, source, **options):
    return Page(write_report(run, source, **options).read_text("utf-8"))


def test_a_whole_run(tmp_path, images):
    page = written(make_run(tmp_path / "run", names()), Pictures(names(), images))
    assert "30 images in 3 clusters of 10 images each." in page.text
    assert "No collapse was seen" in page.text
    assert "60 s" in page.text
    assert "selfcluster train swav photos" in page.text
    assert "0 bytes" in page.text
    assert "Not on this page" not in page.text
    assert page.count()["article"] == 3
    assert [attrs["id"] for tag, attrs in page.elements if tag == "section"] == [
        "found",
        "clusters",
        "map",
        "again",
        "curves",
        "bad",
        "run",
    ]
    album = json.loads(page.album)
    assert album["n"] == 30
    assert sorted(album["ids"]) == sorted(names())
    assert album["cluster"] == [int(name[6:8]) % 3 for name in album["ids"]]
    assert all(0 <= place <= 10_000 for place in album["x"] + album["y"])


def test_it_needs_nothing_outside_itself(tmp_path, images):
    page = written(make_run(tmp_path / "run", names()), Pictures(names(), images, jpeg=True))
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attrs.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, name, value[:80])
        assert not [name for name in attrs if name.startswith("on")]
    assert tag_count(page, "link") == tag_count(page, "iframe") == tag_count(page, "base") == 0


def test_the_policy_admits_our_script_and_no_other(tmp_path):
    page = written(make_run(tmp_path / "run", names()), None)
    policy = next(
        a["content"] for t, a in page.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    assert "connect-src" not in rules
    assert written(make_run(tmp_path / "run", names()), None).script.count("fetch(") == 1  # only where a page is served


def tag_count(page, tag):
    return page.count().get(tag, 0)


def test_hostile_names_make_no_element(tmp_path, images):
    tame = make_run(tmp_path / "tame", names())
    wild = make_run(tmp_path / "wild", names(of=HOSTILE))
    for run, texts in ((tame, ["plain"] * 10), (wild, HOSTILE)):
        rows = [{"path": t, "reason": t, "detail": t} for t in texts]
        (run / "quarantine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {"method": texts[1], "data": {"data": texts[0]}, "settings": dict.fromkeys(set(texts), texts[3])}
        (run / "config.yaml").write_text(yaml.safe_dump({**config, "about": {"command": texts[3], "versions": {}}}))
        (run / "status.json").write_text(json.dumps({"state": "failed", "message": texts[0]}))
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": i, "loss": 1.0, texts[0]: 1}) + "\n" for i in range(3))
        )
    labels = np.arange(30) % 3
    expected = written(tame, Pictures(names(), images, labels, ["a", "b", "c"]), title="t")
    page = written(wild, Pictures(names(of=HOSTILE), images, labels, HOSTILE[:3]), title=HOSTILE[3])
    ours, theirs = expected.count(), page.count()
    for per_value in ("tr", "td", "li"):  # one a setting and one a reason: ten here, one there
        ours.pop(per_value), theirs.pop(per_value)
    assert theirs == ours
    assert {n for _, a in page.elements for n in a} == {n for _, a in expected.elements for n in a}
    assert page.script == expected.script
    titles = {a["title"] for t, a in page.elements if t == "span" and "title" in a}
    assert {HOSTILE[0], HOSTILE[1], HOSTILE[6], "line\\nbreak\\r\\ttab.jpg"} <= titles
    assert "{{ 7 * 7 }}" in page.text


def test_hostile_names_reach_the_script_as_text(tmp_path, images):
    out = write_report(make_run(tmp_path / "run", names(of=HOSTILE)), Pictures(names(of=HOSTILE), images))
    page = Page(out.read_text("utf-8"))
    assert set(json.loads(page.album)["ids"]) == set(names(of=HOSTILE))
    assert not re.search(r"[<>&\u2028\u2029]|[^\x00-\x7f]", page.album)
    assert "\u202e" not in out.read_text("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é \U0001f469\u200d\U0001f52c", "plain é \U0001f469\u200d\U0001f52c"),
        ("a\nb\x00", "a\\nb\\x00"),
        ("\u202e\u2028\udcff", "\\u202e\\u2028\\udcff"),
        ("\\xff", "\\xff"),
        (None, "None"),
    ],
)
def test_what_cannot_be_seen_is_spelt_out(text, shown):
    assert visible(text) == shown


def test_long_names_keep_both_ends():
    short = visible("start" + "x" * 5000 + "end.jpg")
    assert len(short) < 320
    assert short.startswith("start")
    assert short.endswith("end.jpg")


def test_an_empty_folder_says_what_to_run(tmp_path):
    page = written(tmp_path, None)
    assert "There are no clusters here yet." in page.text
    assert f"selfcluster cluster {tmp_path.name}" in page.text  # no path of this machine
    assert "selfcluster embed" in page.text
    assert page.album == ""
    assert tag_count(page, "article") == 0


@pytest.mark.parametrize(
    "name", ["config.yaml", "status.json", "metrics.jsonl", "embeddings.parquet", "clusters.parquet"]
)
def test_each_file_may_be_missing(tmp_path, images, name):
    run = make_run(tmp_path / "run", names())
    (run / name).unlink()
    page = written(run, Pictures(names(), images))
    assert f"{name} is not there" in page.text


def test_without_images_the_numbers_are_still_there(tmp_path):
    page = written(make_run(tmp_path / "run", names()), None)
    assert tag_count(page, "img") == 0
    assert tag_count(page, "article") == 3
    assert "the images were not given" in page.text


def test_images_that_vanished_leave_a_gap(tmp_path, images):
    ids = names()
    page = written(make_run(tmp_path / "run", ids), Pictures(ids[:20], images))
    gone = [a for t, a in page.elements if t == "span" and "gone" in (a.get("class") or "")]
    assert {a["title"] for a in gone} == set(ids[20:])


def test_labels_appear_only_when_given(tmp_path, images):
    run = make_run(tmp_path / "run", names())
    assert "Purity" not in written(run, Pictures(names(), images)).text
    page = written(run, Pictures(names(), images, np.arange(30) % 3, ["hat", "shoe", "belt"]))
    assert "Purity" in page.text
    assert "100% are “shoe”" in page.text


def test_repeated_images_are_pointed_out(tmp_path, images):
    ids = names()
    run = make_run(tmp_path / "run", ids)
    vectors = np.random.default_rng(0).standard_normal((30, 6))
    vectors[0:30:3] = vectors[0]  # cluster 0 is one image, ten times
    write_vectors(run / "embeddings.parquet", ids, vectors)
    page = written(run, Pictures(ids, images))
    assert "9 repeated images" in page.text
    assert "×10" in page.text


def test_vectors_that_are_not_finite_or_all_equal_do_not_stop_the_page(tmp_path, images):
    ids = names()
    run = make_run(tmp_path / "run", ids)
    vectors = np.ones((30, 6))
    vectors[4] = np.nan
    write_vectors(run / "embeddings.parquet", ids, vectors)
    page = written(run, Pictures(ids, images))
    x = json.loads(page.album)["x"]
    assert len(x) == 30
    assert x.count(None) == 1
    assert "The features have collapsed" in page.text


def test_many_clusters_become_rows(tmp_path):
    ids = [f"{i:05}" for i in range(4_500)]
    run = make_run(tmp_path / "run", ids, k=2_200)
    page = written(run, None, landmarks=20)
    assert tag_count(page, "article") == 60
    assert "The first 2,000 are listed" in page.text


def test_the_file_is_bounded_even_for_noise(tmp_path, monkeypatch):
    class Noise(Pictures):
        def read(self, i):
            return self.images[i % 16]

    noise = np.random.default_rng(0).integers(0, 256, (16, 110, 110, 3), np.uint8)
    ids = [f"{i:05}" for i in range(2_500)]
    monkeypatch.setattr(reading, "SHEET_BYTES", 600_000)
    assert (
        write_report(make_run(tmp_path / "run", ids, k=80), Noise(ids, noise), landmarks=20).stat().st_size < 9_000_000
    )


def test_nothing_half_written_and_where_to_write(tmp_path):
    run = make_run(tmp_path / "run", names())
    out = write_report(run, None, out=tmp_path / "elsewhere.html")
    assert out == tmp_path / "elsewhere.html"
    assert not (run / "report.html").exists()
    write_clusters(run / "clusters.parquet", [], [], [])
    assert "No clusters yet" in written(run, None).text


def test_ctrl_c_does_not_wait_for_the_map(tmp_path):
    """The map is placed by a thread that nothing can stop: here it sleeps for ten minutes."""
    make_run(tmp_path / "run", names())
    code = """
import signal, sys, time
from pathlib import Path
from selfcluster.reporting import page
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def read(*arguments, **more):
    found = read_images(*arguments, **more)
    print("waiting for the map", flush=True)
    return found
read_images, page.read_images = page.read_images, read
page.place_images = lambda *arguments: time.sleep(600)
try:
    page.write_report(Path(sys.argv[1]), None)
except KeyboardInterrupt:
    print("interrupted")
"""
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting for the map\n"
        process.send_signal(signal.SIGINT)
        try:
            out, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (out, errors, process.returncode) == ("interrupted\n", "", 0)
    assert not (tmp_path / "run" / "report.html").exists()


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        write_report(tmp_path / "nowhere", None)
    with pytest.raises(ValueError, match="landmarks=-1"):
        write_report(tmp_path, None, landmarks=-1)


def test_what_is_there_to_be_copied_is_not_shortened():
    environment = _environment()
    long = "selfcluster train " + "x" * 600
    assert environment.from_string("{{ a|whole }}").render(a=long) == long
    assert environment.from_string("{{ a|shell }}").render(a="/" + long).endswith("x" * 600 + "&#39;")
    assert "…" in environment.from_string("{{ a }}").render(a=long)


def test_no_absolute_path_reaches_the_page(tmp_path, images):
    run = make_run(tmp_path / "home" / "ann" / "runs" / "swav", names())
    config = (run / "config.yaml").read_text().replace("train swav photos", "train swav /home/ann/private/photos")
    (run / "config.yaml").write_text(config)
    page = written(run, Pictures(names(), images))
    assert "ann" not in page.text
    assert "…/private/photos" in page.text


def test_evaluations_are_on_the_page(tmp_path, images):
    from selfcluster.evaluation.protocol import Result

    run = make_run(tmp_path / "run", names())
    Result("knn", {"top1": 0.61234, "k": 20}, settings={"k": 20}, subject={"seed": 0, "layer": None}).write(run)
    page = written(run, Pictures(names(), images))
    assert "knn" in page.text
    assert "0.6123" in page.text
    assert "layer" not in page.text


def test_an_unfinished_run_says_how_to_resume_and_flags_never_break(tmp_path, images):
    run = make_run(tmp_path / "run", names())
    config = (run / "config.yaml").read_text().replace("train swav photos", "train swav photos --out 'my `run`'")
    (run / "config.yaml").write_text(config)
    (run / "status.json").write_text(json.dumps({"state": "running"}))
    text = write_report(run, Pictures(names(), images)).read_text()
    assert "Resume it with: <code>selfcluster train swav photos --out &#39;my </code>" in text
    assert _environment().from_string("{{ a|flags }}").render(a="<b> --learning-rate, well-known") == (
        "&lt;b&gt; <code>--learning-rate</code>, well-known"
    )


@pytest.mark.parametrize("home", ["/home/ann/", "/Users/ann/", "/root/"])
def test_a_command_to_be_copied_names_no_home_folder(home):
    copied = _environment().from_string("{{ a|copied }}").render(a=f"embed {home}runs/swav /data/ann/photos")
    assert copied == "embed ~/runs/swav /data/ann/photos"


def test_copies_are_on_the_page_with_the_threshold(tmp_path, images):
    ids = names()
    run = make_run(tmp_path / "run", ids)
    vectors = np.random.default_rng(0).standard_normal((30, 6))
    vectors[4] = vectors[5]
    write_vectors(run / "embeddings.parquet", ids, vectors)
    page = written(run, Pictures(ids, images))
    assert "1 group of copies" in page.text
    album = json.loads(page.album)
    assert [sorted(album["ids"][i] for i in group) for group in album["suspects"]["exact"]] == [[ids[4], ids[5]]]
    assert len(album["suspects"]["farthest"]) == 30
    assert album["distance"][album["suspects"]["farthest"][0]] == max(album["distance"])
