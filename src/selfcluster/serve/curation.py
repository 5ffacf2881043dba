"""Serve the page of a run to a browser on this machine; each action is written to RUN/curation.jsonl at once.

    GET  /TOKEN/           the page, which names the token
    GET  /TOKEN/curation   all rows, as a JSON array
    POST /TOKEN/curation   a JSON array of rows to append, all or none of them; the answer holds all rows
    GET  /TOKEN/images/ID  an image of the run, in a format that browsers show.
    GET  /TOKEN/attention/ID  its attention map, as PNG

Only this machine can reach the server. Requests from pages of other sites are refused by their Origin header, other
host names by the Host header, and other users by the token. An answer with a status other than 200 is
{"error": sentence}.
"""

from __future__ import annotations

import hmac
import io
import json
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from selfcluster.data.errors import BadImage
from selfcluster.data.images import open_content
from selfcluster.data.sources import Source
from selfcluster.files import message_of, reason_of
from selfcluster.reporting.attention import AttentionPictures, is_transformer
from selfcluster.runs.curation import MAX_ROW_BYTES, CurationError, append_rows, read_rows
from selfcluster.runs.tables import CLUSTERS, clusters_of

ADDRESS = "127.0.0.1"
_LARGEST_SIDE = 2_048  # pixels: images decoded here are made no larger than a screen
_TIMEOUT = 60.0  # seconds that a browser may be silent within a request
_SHOWN_BY_BROWSERS = {  # the first bytes of a file, and its type
    b"\xff\xd8\xff": "image/jpeg",
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"GIF8": "image/gif",
    b"BM": "image/bmp",
}
_NOTHING = "default-src 'none'; sandbox"  # the policy of every answer but the page


class Refused(Exception):
    """A request that is refused: the status of the answer and a sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class CurationServer(ThreadingHTTPServer):
    """Serves the page of one run. `serve_forever()` runs until `shutdown()`, which another thread calls.

    Args:
        run: a run folder with clusters.
        source: its images; None if they are gone.
        render: returns the page as HTML for a token; called again when the run's clusters have changed.
        port: 0: any free one.
        token: default: a random one.

    Raises:
        RunError: the run has no clusters.
        ValueError: the port is in use or not allowed.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, run: Path, source: Source | None, render: Callable[[str], str], port: int = 0, token: str | None = None
    ) -> None:
        self.run, self.source, self._render = run, source, render
        self.token = token or secrets.token_urlsafe(24)
        self._place = {} if source is None else {name: row for row, name in enumerate(source.ids)}
        self._attention = AttentionPictures(run) if is_transformer(run) else None
        self._lock = threading.Lock()
        self._read_run()
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            why = reason_of(error)
            raise ValueError(f"--port {port}: cannot be opened ({why}); choose another, or 0 for a free one") from error

    @property
    def address(self) -> str:
        """The page's address, token included."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    def page(self) -> str:
        """Return the page; if the run's clusters have changed, it is rendered again."""
        with self._lock:
            if self._version() != self._made_from:
                self._read_run()
            return self._page

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows of the run's curation."""
        return read_rows(self.run)

    def append(self, rows: object) -> list[dict[str, Any]]:
        """Append rows and return all rows; raise Refused if they do not fit or cannot be written."""
        if not isinstance(rows, list):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is not a list of actions")
        with self._lock:
            if self._version() != self._made_from:
                raise Refused(
                    HTTPStatus.CONFLICT,
                    f"the clusters of {self.run.name} have changed, so this change was not saved. Reload the page",
                )
            try:
                return append_rows(self.run, rows, self._start, once=True)
            except CurationError as error:
                raise Refused(HTTPStatus.CONFLICT, str(error)) from error
            except OSError as error:
                status, why = HTTPStatus.INSUFFICIENT_STORAGE, message_of(error)
                raise Refused(status, f"the change was not saved: {why}") from error

    def image(self, name: str) -> tuple[bytes, str]:
        """Return an image's bytes and their type, by its id; raise Refused if the run has no such image."""
        if self.source is None or name not in self._place:
            raise Refused(HTTPStatus.NOT_FOUND, f"no image {json.dumps(name[:80])} in this run")
        try:
            data = self.source.read(self._place[name])
            kind = _kind(data) if isinstance(data, bytes) else None
            if isinstance(data, bytes) and kind is not None:
                return data, kind
            return _as_png(open_content(self.source, data).pixels(3, _LARGEST_SIDE)), "image/png"
        except (BadImage, OSError, ValueError) as error:
            raise Refused(HTTPStatus.NOT_FOUND, f"{name[:80]} cannot be read: {reason_of(error)}") from error

    def attention(self, name: str) -> tuple[bytes, str]:
        """Return the attention map of an image and its type, by the image's id; raise Refused if there is none."""
        if self._attention is None:
            raise Refused(HTTPStatus.NOT_FOUND, "the network of this run is not a vision transformer")
        source = self.source
        if source is None or name not in self._place:
            raise Refused(HTTPStatus.NOT_FOUND, f"no image {json.dumps(name[:80])} in this run")
        try:
            data = source.read(self._place[name])
            made = self._attention.picture(lambda channels: open_content(source, data).pixels(channels, _LARGEST_SIDE))
        except (BadImage, OSError, ValueError) as error:
            raise Refused(HTTPStatus.NOT_FOUND, f"no attention map of {name[:80]}: {reason_of(error)}") from error
        return made, "image/png"

    def _read_run(self) -> None:
        self._made_from = self._version()
        self._start = clusters_of(self.run).by_id()
        self._page = self._render(self.token)

    def _version(self) -> tuple[int, ...] | None:
        """Return what identifies the table of clusters; a table is replaced, never changed in place."""
        try:
            found = (self.run / CLUSTERS).stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "selfcluster", ""
    timeout = _TIMEOUT
    server: CurationServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing, because the address contains the token."""

    def _get(self) -> None:
        if self.path == "/favicon.ico":  # browsers request it automatically
            self._send(b"", "image/x-icon", HTTPStatus.NO_CONTENT)
            return
        path = self._path()
        if path == "":
            self._send(self.server.page().encode("utf-8", "backslashreplace"), "text/html; charset=utf-8", policy="")
        elif path == "curation":
            self._check_token()
            self._send_json(self.server.rows())
        elif path.startswith("images/"):
            self._send(*self.server.image(unquote(path.removeprefix("images/"), errors="surrogateescape")))
        elif path.startswith("attention/"):
            self._send(*self.server.attention(unquote(path.removeprefix("attention/"), errors="surrogateescape")))
        else:
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")

    def _post(self) -> None:
        if self._path() != "curation":
            raise Refused(HTTPStatus.NOT_FOUND, "no such page")
        self._check_token()
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the request has no valid Content-Length")
        if int(length) > MAX_ROW_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{int(length):,} bytes at once; at most {MAX_ROW_BYTES:,}"
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, "the request was cut off; nothing was saved")
        try:
            rows = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is not JSON") from None
        self._send_json(self.server.append(rows))

    def _answer(self, act: Callable[[], None]) -> None:
        try:
            self._check_origin()
            act()
        except Refused as refusal:
            self.close_connection = True  # the body may not have been read
            self._send_json({"error": str(refusal)}, refusal.status)
        except (ConnectionError, TimeoutError):
            self.close_connection = True  # the browser went away
        except Exception as error:
            self.close_connection = True
            self._send_json({"error": f"{type(error).__name__}: {message_of(error)}"}, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _check_origin(self) -> None:
        hosts = {f"{name}:{self.server.server_port}" for name in (ADDRESS, "localhost")}
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host not in hosts:
            raise Refused(HTTPStatus.FORBIDDEN, f"this server is {ADDRESS}, not {json.dumps(host[:80])}")
        if origin is not None and origin != f"http://{host}":
            raise Refused(HTTPStatus.FORBIDDEN, f"a page of {json.dumps(origin[:80])} may not ask this server")
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise Refused(HTTPStatus.FORBIDDEN, "a page of another site may not ask this server")

    def _path(self) -> str:
        """Return the path after the token; raise Refused if the token is wrong."""
        _, first, *rest = [*urlsplit(self.path).path.split("/", 2), ""]
        if not rest or not _same(first, self.server.token):
            raise Refused(
                HTTPStatus.FORBIDDEN, "the address is incomplete; use the full address that the command printed"
            )
        return rest[0]

    def _check_token(self) -> None:
        if not _same(self.headers.get("X-Token", ""), self.server.token):
            raise Refused(HTTPStatus.FORBIDDEN, "the request lacks the token; load the page again")

    def _send_json(self, value: object, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK, policy: str = _NOTHING) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",  # the address contains the token
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "private, max-age=600" if kind.startswith("image/") else "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        if policy:
            self.send_header("Content-Security-Policy", policy)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _kind(data: bytes) -> str | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _SHOWN_BY_BROWSERS.items() if data.startswith(start)), None)


def _as_png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
