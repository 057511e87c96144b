"""A read-only S3 server of a folder, as fast as the kernel sends files, or at the pace that S3 has per connection.

`python object_server.py FOLDER [SECONDS_TO_FIRST_BYTE BYTES_PER_SECOND]` prints its port. The paced form is a model
of a distant server (AWS: 85-90 MB/s per request, tens of milliseconds to the first byte), not a measurement of one.
"""

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECE_BYTES = 1 << 20


class Objects(BaseHTTPRequestHandler):
    """Answers HEAD and GET, with ranges, of `/bucket/key`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    wait_s = 0.0
    pace = 0.0

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, send: bool) -> None:
        path = self.folder / self.path.partition("?")[0].lstrip("/").partition("/")[2]
        time.sleep(self.wait_s)
        if not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        asked = self.headers.get("Range")
        start, stop = 0, size
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else size, size)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}"')
        self.send_header("Last-Modified", "Sun, 22 Nov 2026 00:00:00 GMT")
        self.end_headers()
        if send:
            with path.open("rb") as file:
                self._send(file.fileno(), start, stop)

    def _send(self, file: int, start: int, stop: int) -> None:
        self.wfile.flush()
        began, place = time.perf_counter(), start
        while place < stop:
            place += os.sendfile(self.connection.fileno(), file, place, min(PIECE_BYTES, stop - place))
            if self.pace:
                time.sleep(max(0.0, began + (place - start) / self.pace - time.perf_counter()))


def main() -> None:
    """Serves until it is killed."""
    Objects.folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        Objects.wait_s, Objects.pace = float(sys.argv[2]), float(sys.argv[3])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Objects)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
