"""A hub for tests: an HTTP server on this machine that speaks as much of the protocol as needed.

``huggingface_hub`` itself talks to it (``HF_ENDPOINT``), so downloads, sizes, refusals of gated
models and unknown names take the paths they take at the real hub.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123abcd" * 5


@contextmanager
def serve(models: dict[str, Path], gated: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Serve folders under their hub names; yield the address and the list of files sent.

    Parameters
    ----------
    models : dict of str to Path
    gated : tuple of str
        Those of them that need a login.
    """
    sent: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Say nothing."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models/" if api else "/").split("/")
            name, rest = "/".join(parts[:2]), parts[2:]
            if name in gated and not api:
                # What a gated model has is public, the files are not.
                self._send(401, b"{}", {"X-Error-Code": "GatedRepo"}, body)
            elif name not in models:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            elif api:
                found = self._tree(name) if rest[:1] == ["tree"] else self._model(name)
                self._send(200, json.dumps(found).encode(), {}, body)
            else:
                self._file(models[name] / "/".join(rest[2:]), body)

        def _files(self, name: str) -> list[Path]:
            return sorted(path for path in models[name].iterdir() if path.is_file())

        def _tree(self, name: str) -> list[dict]:
            return [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name}
                for p in self._files(name)
            ]

        def _model(self, name: str) -> dict:
            return {
                "id": name,
                "modelId": name,
                "sha": COMMIT,
                "siblings": [{"rfilename": path.name} for path in self._files(name)],
                "tags": [],
                "downloads": 0,
                "private": False,
                "gated": "auto" if name in gated else False,
            }

        def _file(self, path: Path, body: bool) -> None:
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
                return
            content = path.read_bytes()
            if body:
                sent.append(path.name)
            etag = hashlib.sha1(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)

        def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(code)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
