"""The served page: what is done in the browser is on the disk, and nobody else is let in."""

import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from selfcluster.cli import main
from selfcluster.data.sources import open_source
from selfcluster.runs.curation import CURATION, read_rows
from selfcluster.runs.folder import RunError
from selfcluster.serve.curation import MAX_ROW_BYTES, CurationServer
from tests.reporting.folders import make_run, write_clusters

RENAME = {"action": "rename", "cluster": 0, "name": "shoes"}
HOSTILE = ["a b.png", "50%.png", "#1?.png", "<script>.png", "sub/ü.png"]


def wave(seed):
    return np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "photos/sub").mkdir(parents=True)
    for number, name in enumerate(HOSTILE):
        Image.fromarray(wave(number)).save(tmp_path / "photos" / name)
    Image.fromarray(wave(9)).save(tmp_path / "photos/scan.tif")
    (tmp_path / "secret.txt").write_text("secret")
    return make_run(tmp_path / "run", [*HOSTILE, "scan.tif"])


@pytest.fixture
def server(run):
    with CurationServer(run, open_source(str(run.parent / "photos")), lambda token: f"<p>{token}</p>") as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server, path, body=None, method=None, **headers):
    """Status, content and headers of an answer; `path` is below the token, or whole where it begins with a slash."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    path = path if path.startswith("/") else urlsplit(server.address).path + path
    method = method or ("GET" if body is None else "POST")
    connection.request(
        method, path, body, {"X-Token": server.token, **{k.replace("_", "-"): v for k, v in headers.items()}}
    )
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, answer.headers


def post(server, rows):
    status, content, _ = ask(server, "curation", json.dumps(rows))
    return status, json.loads(content)


def test_an_action_is_a_row_on_the_disk_when_it_is_answered(server, run):
    status, rows = post(server, [RENAME])
    assert status == 200
    assert len(rows) == 1
    assert {k: rows[0][k] for k in RENAME} == RENAME
    assert rows == read_rows(run)
    assert post(server, [{"action": "undo"}])[1] == read_rows(run)
    status, content, _ = ask(server, "curation")
    assert status == 200
    assert json.loads(content) == read_rows(run)
    assert len(read_rows(run)) == 2


def test_rows_that_do_not_fit_are_refused_together_in_a_sentence(server, run):
    status, answer = post(server, [RENAME, {"action": "merge", "cluster": 0, "into": 77}])
    assert status == 409
    assert "no cluster 77" in answer["error"]
    assert not read_rows(run)
    for body, sentence in ((b"{", "not JSON"), (b"{}", "not a list"), (b"[[]]", "not an object"), (b"[" * 100_000, "")):
        status, content, _ = ask(server, "curation", body)
        assert status in (400, 409)
        assert sentence in json.loads(content)["error"]
    assert not (run / CURATION).exists() or not (run / CURATION).read_bytes()


def test_images_come_as_they_are_or_as_png_and_only_those_of_the_run(server, run):
    for name in HOSTILE:
        status, content, headers = ask(server, "images/" + quote(name, safe=""))
        assert status == 200
        assert content == (run.parent / "photos" / name).read_bytes()
        assert headers["Content-Type"] == "image/png"
        assert headers["X-Content-Type-Options"] == "nosniff"
    status, content, headers = ask(server, "images/scan.tif")
    assert status == 200
    assert headers["Content-Type"] == "image/png"
    assert content.startswith(b"\x89PNG")
    for name in (
        "../secret.txt",
        "%2e%2e%2fsecret.txt",
        "/etc/passwd",
        quote(str(run.parent / "secret.txt"), safe=""),
        "",
        "%ff",
    ):
        status, content, _ = ask(server, "images/" + name)
        assert status == 404
        assert b"secret\n" not in content
        assert "error" in json.loads(content)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/curation", {}),
        ("/wrong/curation", {}),
        ("//evil.example/curation", {}),
        ("", {"Host": "evil.example"}),
        ("", {"Host": "127.0.0.1:1"}),
        ("curation", {"X-Token": "wrong"}),
        ("curation", {"X-Token": "wrong\xff"}),
        ("", {"Origin": "https://evil.example"}),
        ("", {"Origin": "null"}),
        ("images/scan.tif", {"Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_strangers_are_refused(server, run, path, headers):
    for body in (None, json.dumps([RENAME])):
        status, content, _ = ask(server, path, body, **headers)
        assert status in (403, 404)
        assert json.loads(content)["error"]
    assert not (run / CURATION).exists()


def test_there_is_an_attention_map_only_of_the_runs_images_and_of_a_transformer(server, run):
    status, content, _ = ask(server, "attention/" + quote(HOSTILE[0]))
    assert (status, json.loads(content)["error"]) == (404, "the network of this run is not a vision transformer")
    spec = {"model_name": "vit_of_nobody"}
    (run / "backbone.json").write_text(json.dumps(spec))
    source = open_source(str(run.parent / "photos"))
    with CurationServer(run, source, lambda token: f"<p>{token}</p>") as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            for name in ("../secret.txt", "none.png"):
                status, content, _ = ask(other, "attention/" + quote(name, safe=""))
                assert status == 404
                assert "no image" in json.loads(content)["error"]
            status, content, _ = ask(other, "attention/" + quote(HOSTILE[0]))  # a network that cannot be loaded
            assert status in (404, 500)
            assert json.loads(content)["error"]
            assert ask(other, f"/{'x' * 32}/attention/{quote(HOSTILE[0])}")[0] == 403
        finally:
            other.shutdown()


def test_the_own_page_is_let_in(server):
    own = f"http://127.0.0.1:{server.server_port}"
    status, content, headers = ask(server, "", Origin=own, Sec_Fetch_Site="same-origin")
    assert status == 200
    assert server.token in content.decode()
    assert headers["Referrer-Policy"] == "no-referrer"
    assert ask(server, "", Host=f"localhost:{server.server_port}")[0] == 200
    assert server.server_address[0] == "127.0.0.1"


def test_a_body_too_long_cut_off_or_of_unknown_length_is_refused(server, run):
    path = urlsplit(server.address).path + "curation"
    for length, sentence in (
        (str(MAX_ROW_BYTES + 1), "at most"),
        ("-5", "no valid Content-Length"),
        ("many", "no valid Content-Length"),
        ("50", "cut off"),
    ):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as line:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nX-Token: {server.token}\r\n"
            line.sendall(f"{head}Content-Length: {length}\r\n\r\n[".encode())
            line.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda line=line: line.recv(4096), b""))
        assert sentence in json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert not read_rows(run)


def test_two_tabs_at_once_lose_nothing(server, run):
    names = [f"name {n}" for n in range(24)]
    with ThreadPoolExecutor(8) as tabs:
        answers = list(tabs.map(lambda name: post(server, [{**RENAME, "name": name}]), names))
    assert all(status == 200 for status, _ in answers)
    assert sorted(row["name"] for row in read_rows(run)) == sorted(names)


def test_a_full_disk_is_said_and_leaves_the_rows_as_they_were(server, run, monkeypatch):
    post(server, [RENAME])
    before = (run / CURATION).read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, answer = post(server, [{"action": "rubbish", "cluster": 1}])
    assert status == 507
    assert "curation.jsonl cannot be written, the disk is full" in answer["error"]
    monkeypatch.undo()
    assert (run / CURATION).read_bytes() == before
    assert post(server, [{"action": "rubbish", "cluster": 1}])[0] == 200


def test_clusters_made_anew_refuse_actions_of_the_old_page(server, run):
    write_clusters(run / "new.parquet", HOSTILE, [0] * len(HOSTILE), [0.0] * len(HOSTILE))
    (run / "new.parquet").replace(run / "clusters.parquet")
    status, answer = post(server, [{"action": "rubbish", "cluster": 2}])
    assert status == 409
    assert "Reload the page" in answer["error"]
    assert not read_rows(run)
    assert ask(server, "")[0] == 200
    assert post(server, [RENAME])[0] == 200
    assert "no cluster 2" in post(server, [{"action": "rubbish", "cluster": 2}])[1]["error"]


def test_a_run_without_clusters_and_a_taken_port_are_refused(server, run):
    with pytest.raises(ValueError, match=f"--port {server.server_port}"):
        CurationServer(run, None, str, server.server_port)
    with pytest.raises(ValueError, match="--port 99999"):
        CurationServer(run, None, str, 99_999)
    (run / "clusters.parquet").unlink()
    with pytest.raises(RunError, match="selfcluster cluster"):
        CurationServer(run, None, str)


def test_the_command_prints_the_address_and_no_end_of_it_loses_anything(run):
    (run / "config.yaml").write_text(json.dumps({"model": "starter", "data": str(run.parent / "photos")}))
    command = [sys.executable, "-m", "selfcluster", "report", str(run), "--serve"]
    for rows, end in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGTERM), start=1):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            rename_through(process.stderr)
            process.send_signal(end)
            said, _ = process.communicate(timeout=20)
        finally:
            process.kill()
        assert len(read_rows(run)) == rows
        if end != signal.SIGKILL:
            assert process.returncode == 0
            assert f"{rows} actions" in said


def rename_through(lines):
    """Read a served page's address from what the command says, load the page and post an action as it would."""
    address = next(word for line in lines for word in line.split() if word.startswith("http://"))
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    connection.request("GET", parts.path)
    page = connection.getresponse().read().decode()
    token = Path(parts.path).name
    assert f'<meta name="curation-server" content="{token}">' in page
    assert "connect-src &#39;self&#39;" in page
    connection.request("POST", parts.path + "curation", json.dumps([RENAME]), {"X-Token": token})
    assert connection.getresponse().status == 200
    connection.close()


def test_flags_without_effect_are_refused(run, capsys):
    assert main(["report", str(run), "--port", "8000"]) == 2
    assert "--serve" in capsys.readouterr().err
    assert main(["report", str(run), "--serve", "--out", "x.html"]) == 2
    assert "--out" in capsys.readouterr().err
