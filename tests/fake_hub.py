"""A server on the loopback that answers huggingface_hub as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "c" * 40
"""Hash of the only commit."""


class FakeHub:
    """The files of one repo, and what goes wrong with them."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.files: dict[str, bytes] = {}
        self.etag: str | None = None
        """Checksum that is sent in place of the right one."""
        self.size: int | None = None
        """Size that is sent in place of the right one."""
        self.refusal: tuple[int, str] | None = None
        """HTTP status and error code of every answer."""
        self.cut: int | None = None
        """Bytes of a file after which the connection breaks."""
        self.hangs = False
        """Whether it hangs instead, until the server ends."""
        self.reached = threading.Event()
        """Set when ``cut`` bytes were sent."""
        self.ended = threading.Event()
        self.ranges: list[str | None] = []
        """The ranges of the files that were asked for; None for a whole file."""
        self.url = ""


@contextmanager
def fake_hub(repository: str) -> Iterator[FakeHub]:
    """Run a server for the block."""
    hub = FakeHub(repository)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Print nothing about clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        if hub.refusal:
            self._answer(hub.refusal[0], {"X-Error-Code": hub.refusal[1]})
        elif path == f"/api/models/{hub.repository}":
            facts = {"id": hub.repository, "siblings": [{"rfilename": each} for each in hub.files]}
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())
        elif path.startswith(f"/{hub.repository}/resolve/"):
            name = path.split("/", 5)[5]
            if name in hub.files:
                self._file(name)
            else:
                self._answer(404, {"X-Error-Code": "EntryNotFound"})
        else:  # as the Hub answers whoever is not logged in
            self._answer(401, {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str) -> None:
        hub, data, asked = self.hub, self.hub.files[name], self.headers.get("Range")
        headers = {
            "ETag": f'"{hub.etag or hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(data) if hub.size is None else hub.size),
        }
        if self.command == "HEAD":
            self._answer(200, headers, data)
            return
        hub.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206 if asked else 200, headers, data[start:], hub.cut)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes = b"", most: int | None = None
    ) -> None:
        self.send_response(status)
        for item in headers.items():
            self.send_header(*item)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            self.wfile.write(body[:most])
        except OSError:  # the client has gone
            self.close_connection = True
        if most is not None and most < len(body):
            self.hub.reached.set()
            if self.hub.hangs:
                self.hub.ended.wait()
            self.close_connection = True
