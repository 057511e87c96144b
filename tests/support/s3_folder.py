"""An S3 server of a folder that can be killed at any moment: what it has answered is on the disk.

`python s3_folder.py FOLDER ADDRESS PORT` serves each folder below FOLDER as a bucket, an object in one file of the same
name. It has what a store uses: reads of ranges, listings, copies, removals, and writes under the conditions
`If-None-Match: *` and `If-Match`. It checks no signatures and takes no uploads in parts.
"""

import os
import re
import sys
import threading
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.sax.saxutils import escape, unescape

DATE = "Sun, 22 Nov 2026 00:00:00 GMT"
META = "x-amz-meta-"


class Objects(BaseHTTPRequestHandler):
    """Answers GET, HEAD, PUT and DELETE of `/bucket/key`, and a bucket's listing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    writing = threading.Lock()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""

    @property
    def _asked(self) -> tuple[Path, dict[str, str]]:
        path, _, query = self.path.partition("?")
        found = self.folder / urllib.parse.unquote(path).lstrip("/")
        return found, dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, query = self._asked
        if "list-type" in query:
            self._list(path, query.get("prefix", ""))
            return
        try:
            with path.open("rb") as file:
                tag = _tag(file.fileno())
                meta = {name.removeprefix("user."): os.getxattr(file.fileno(), name).decode()
                        for name in os.listxattr(file.fileno())}  # fmt: skip
                size = os.fstat(file.fileno()).st_size
                asked = self.headers.get("Range", "")
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first or 0), min(int(last or size) + 1, size)
                file.seek(start)
                data = b"" if self.command == "HEAD" else file.read(stop - start)
        except (FileNotFoundError, IsADirectoryError):
            self._answer(404)
            return
        if self.headers.get("If-Match", tag) != tag:
            self._answer(412)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        facts = {"Content-Length": str(stop - start), "ETag": tag, "Last-Modified": DATE}
        for name, value in {**facts, **{META + name: value for name, value in meta.items()}}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        path, query = self._asked
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "uploadId" in query:
            self._answer(501)
            return
        if source := self.headers.get("x-amz-copy-source"):
            data = (self.folder / urllib.parse.unquote(source).lstrip("/")).read_bytes()
        new = self.folder / f".{uuid.uuid4().hex}"
        new.write_bytes(data)
        for name, value in self.headers.items():
            if name.lower().startswith(META):
                os.setxattr(new, f"user.{name.lower().removeprefix(META)}", value.encode())
        with self.writing:
            there = _tag(path) if path.exists() else None
            refused = (self.headers.get("If-None-Match") == "*" and there is not None) or (
                "If-Match" in self.headers and self.headers["If-Match"] != there
            )
            if refused:
                new.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                new.rename(path)
        tag = {} if refused else {"ETag": _tag(path)}
        body = b"<CopyObjectResult/>" if source else b""
        self._answer(412 if refused else 200, body, **tag)

    def do_DELETE(self) -> None:
        self._asked[0].unlink(missing_ok=True)
        self._answer(204)

    def do_POST(self) -> None:
        bucket, query = self._asked
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if "delete" not in query:
            self._answer(501)
            return
        keys = re.findall("<Key>([^<]*)</Key>", text)
        for key in keys:
            (bucket / unescape(key)).unlink(missing_ok=True)
        told = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self._answer(200, f"<DeleteResult>{told}</DeleteResult>".encode(), Content_Type="application/xml")

    def _list(self, bucket: Path, prefix: str) -> None:
        start = (bucket / prefix).parent if not prefix.endswith("/") else bucket / prefix
        found = [path for path in sorted(start.rglob("*")) if path.is_file()]
        keys = [(path.relative_to(bucket).as_posix(), path) for path in found]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{path.stat().st_size}</Size><ETag>{escape(_tag(path))}</ETag>"
            "<LastModified>2026-11-22T00:00:00Z</LastModified></Contents>"
            for key, path in keys if key.startswith(prefix)
        )  # fmt: skip
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        self._answer(200, text.encode(), Content_Type="application/xml")


def _tag(file: int | Path) -> str:
    facts = os.stat(file)
    return f'"{facts.st_mtime_ns:x}-{facts.st_ino:x}"'


def main() -> None:
    """Serves until it is killed."""
    Objects.folder = Path(sys.argv[1])
    ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Objects).serve_forever()


if __name__ == "__main__":
    main()
