"""An engine that says what it was sent; for the front's manners alone.  Usage: PORT.

Texts of the question steer it: ``wait`` answers after a minute, ``fail`` is answered with 500,
``refuse`` with 400; ``drop`` breaks the connection the first time.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DROPPED: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def say(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        said = b"fake_tokens_total 7\n" if self.path == "/metrics" else b""
        self.say(200, said, "text/plain")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = json.dumps(body)
        if "drop" in text and text not in DROPPED:
            DROPPED.add(text)
            self.close_connection = True
        elif "refuse" in text or "fail" in text:
            status = 400 if "refuse" in text else 500
            error = {"error": {"message": "line one\nline two", "code": status}}
            self.say(status, json.dumps(error).encode())
        elif body.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(3):
                choice = {"index": 0, "delta": {"content": f"word{number} "}, "token_ids": [number]}
                self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
                self.wfile.flush()
                time.sleep(60 if "wait" in text else 0)
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True
        else:
            time.sleep(60 if "wait" in text else 0)
            self.say(200, json.dumps({"got": body}).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
