"""Downloads from servers that are slow, broken or not what they should be.

    python tests/endurance/downloads.py --out downloads.json

Every failure must be one line, leave nothing in the cache, and let the next try, of a good server, succeed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTENT = os.urandom(200_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server(BaseHTTPRequestHandler):
    """Answers as its class variable `mode` says."""

    mode = "good"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        self.close_connection = True
        try:
            getattr(self, Server.mode.replace(" ", "_").replace("-", "_"))()
        except (BrokenPipeError, ConnectionResetError):  # the client had enough
            pass

    def head(self, status: int = 200, length: int | None = len(CONTENT), **headers: str) -> None:
        """Send a status and headers."""
        self.send_response(status)
        if length is not None:
            self.send_header("content-length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("connection", "close")
        self.end_headers()

    def good(self) -> None:
        self.head()
        self.wfile.write(CONTENT)

    def redirect_to_a_file(self) -> None:
        self.head(302, 0, location="file:///etc/passwd")

    def redirect_to_ftp(self) -> None:
        self.head(302, 0, location="ftp://127.0.0.1/x")

    def redirect_in_circles(self) -> None:
        self.head(302, 0, location=self.path)

    def redirect_to_nowhere(self) -> None:
        self.head(302, 0, location="http://127.0.0.1:1/x")

    def drip_feed(self) -> None:
        self.head()
        for byte in CONTENT:
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def drip_feed_in_chunks(self) -> None:
        self.head(length=None, transfer_encoding="chunked")
        for byte in CONTENT:
            self.wfile.write(b"1\r\n" + bytes([byte]) + b"\r\n")
            time.sleep(0.05)

    def silence_before_the_headers(self) -> None:
        time.sleep(60)

    def silence_in_the_middle(self) -> None:
        self.head()
        self.wfile.write(CONTENT[:50_000])
        time.sleep(60)

    def cut_off(self) -> None:
        self.head()
        self.wfile.write(CONTENT[:100_000])

    def cut_off_in_a_chunk(self) -> None:
        self.head(length=None, transfer_encoding="chunked")
        self.wfile.write(b"%x\r\n" % len(CONTENT) + CONTENT[:100_000])

    def cut_off_without_a_length(self) -> None:
        self.head(length=None)
        self.wfile.write(CONTENT[:100_000])

    def reset(self) -> None:
        self.head()
        self.wfile.write(CONTENT[:100_000])
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def another_file(self) -> None:
        self.head()
        self.wfile.write(CONTENT[::-1])

    def a_page_with_200(self) -> None:
        page = b"<html><body>Please log in to the network.</body></html>"
        self.head(length=len(page), content_type="text/html")
        self.wfile.write(page)

    def nothing(self) -> None:
        self.head(length=0)

    def not_found(self) -> None:
        self.head(404, 0)

    def server_error(self) -> None:
        self.head(503, 0)

    def more_than_promised(self) -> None:
        self.head()
        self.wfile.write(CONTENT + CONTENT)

    def endless(self) -> None:
        self.head(length=None)
        block = bytes(2**20)
        for _ in range(4000):
            self.wfile.write(block)

    def garbage(self) -> None:
        self.wfile.write(b"\x00\xff" * 500 + b"\r\n\r\n")

    def a_length_that_is_no_number(self) -> None:
        self.head(length=None, content_length="many")
        self.wfile.write(CONTENT[:1000])

    def broken_gzip(self) -> None:
        self.head(content_encoding="gzip")
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


REFUSED = {
    "redirect to a file": "not on the web", "redirect to ftp": "not on the web", "redirect in circles": "in circles",
    "redirect to nowhere": "cannot be reached", "drip-feed": "too slow", "drip-feed in chunks": "too slow",
    "silence before the headers": "too slow", "silence in the middle": "too slow", "cut off": "broke off",
    "cut off in a chunk": "broke off", "cut off without a length": "checksum", "reset": "broke off",
    "another file": "checksum", "a page with 200": "checksum", "nothing": "checksum", "not found": "answered 404",
    "server error": "answered 503", "endless": "more than", "garbage": "cannot", "broken gzip": "",
    "a length that is no number": "",
}  # fmt: skip
"""What each server is, and what must be said of it."""


@contextmanager
def serving() -> Iterator[str]:
    """A server for a while."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file.gz"
    finally:
        server.shutdown()


def main() -> None:
    """Try all servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("downloads.json"))
    parser.add_argument("--patience", type=int, default=5, help="the seconds that stand for the usual 30")
    parser.add_argument("--only", default="", help="only these servers, separated by commas")
    options = parser.parse_args()
    from mixvae.datasets import _download as download

    usual, download.TIMEOUT = download.TIMEOUT, options.patience
    rows = []
    with serving() as url, tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for mode in [name for name in options.only.split(",") if name] or [*REFUSED, "more than promised"]:
            Server.mode, faults, told = mode, [], ""
            cached = download.cache("mnist")
            began = time.monotonic()
            try:
                path = download.fetch(url, MD5, "mnist")
                if mode != "more than promised":  # what was promised is all that is read
                    faults.append("it was taken")
                path.unlink()
            except (OSError, ValueError) as error:
                told = str(error)
                faults += [] if "\n" not in told else ["more than one line"]
                faults += [] if REFUSED[mode] in told else [f"does not say {REFUSED[mode]!r}"]
                faults += [] if "put file.gz into" in told else ["does not say how to mend it"]
            except Exception as error:
                faults.append(f"{type(error).__name__}: {error}")
            seconds = time.monotonic() - began
            if seconds > 3 * options.patience + 20 * (mode == "endless"):
                faults.append(f"it took {seconds:.0f} s")
            left = [path.name for path in cached.glob("*")] if cached.exists() else []
            faults += [f"{name} is left in the cache" for name in left]
            Server.mode = "good"
            try:
                download.fetch(url, MD5, "mnist").unlink()
            except Exception as error:
                faults.append(f"the next try fails: {error}")
            rows.append({"server": mode, "seconds": round(seconds, 1), "told": told, "faults": faults})
            print(f"{'FAULT' if faults else 'good'}: {mode}, {seconds:.1f} s: {told}", flush=True)
            for fault in faults:
                print(f"       {fault}", flush=True)
    good = sum(not row["faults"] for row in rows)
    summary = {"good": good, "cases": len(rows), "patience": options.patience, "usual": usual, "rows": rows}
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"downloads: {good} of {len(rows)} servers handled as they should be")
    sys.exit(good < len(rows))


if __name__ == "__main__":
    main()
