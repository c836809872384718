"""A file server of our own, as good or as bad as a test wants it."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpu_als.datasets.cache import PublishedFile

WAIT = 300  # seconds after which a test that hangs fails


class FileServer:
    """Serves one file, whatever the path. What it does may change between requests.

    Attributes
    ----------
    content, etag : bytes, str or None
    ranges : {"served", "ignored", "refused", "wrong"}
        What becomes of a Range header; "wrong" serves another range than was asked for.
    cuts : list of int
        The next responses end after so many bytes of their body.
    status : int or None
        Answer this instead.
    chatty : bool
        Announce no length, and go on for as long as anybody listens.
    gate : Event or None
        Send nothing of a body before it is set.
    requests : list of message
        Headers of what was asked for.
    arrived : Event
        Set at the first request.
    n_sent : int
        Bytes of bodies, all together.
    """

    def __init__(self, content):
        self.content = content
        self.etag = '"one"'
        self.ranges = "served"
        self.cuts = []
        self.status = None
        self.chatty = False
        self.gate = None
        self.requests = []
        self.arrived = threading.Event()
        self.n_sent = 0
        self.url = ""

    def published(self, name="ml-100k.zip"):
        """Return the file as its publisher describes it."""
        md5 = hashlib.md5(self.content).hexdigest()
        return PublishedFile(f"{self.url}/{name}", len(self.content), md5)

    def answer(self, handler):
        self.requests.append(handler.headers)
        self.arrived.set()
        asked = handler.headers.get("Range")
        if self.status is not None:
            handler.send_error(self.status)
        elif asked and self.ranges == "refused":
            handler.send_error(416)
        elif asked and self.ranges != "ignored" and self._is_same(handler.headers):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            start = 0 if self.ranges == "wrong" else start
            handler.send_response(206)
            size = len(self.content)
            handler.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self._send(handler, self.content[start:])
        else:
            handler.send_response(200)
            self._send(handler, self.content)

    def _is_same(self, headers):
        return headers.get("If-Range") in (None, self.etag)

    def _send(self, handler, body):
        if self.etag:
            handler.send_header("ETag", self.etag)
        if not self.chatty:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if self.gate:
            handler.wfile.flush()
            self.gate.wait(WAIT)
        body = body[: self.cuts.pop(0)] if self.cuts else body
        self.n_sent += len(body)
        try:
            handler.wfile.write(body)
            while self.chatty:
                handler.wfile.write(bytes(1 << 16))
        except ConnectionError:
            pass  # nobody listens any more


@pytest.fixture
def serve(monkeypatch):
    """Return a function that starts a server of ``content`` on this machine."""
    monkeypatch.setenv("no_proxy", "*")
    running = []

    def start(content):
        files = FileServer(content)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                files.answer(self)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        files.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread, files))
        return files

    yield start
    for server, thread, files in running:
        if files.gate:
            files.gate.set()
        server.shutdown()
        thread.join()
        server.server_close()
