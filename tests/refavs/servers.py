"""Local servers for the tests of remote stores: moto as S3, web servers with and without ranges, one that dies."""

import functools
import http.server
import logging
import os
import secrets
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from refavs.store.backends.base import LocalFolder
from tests.refavs import small_store as small

SECRET = "not-to-be-printed"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A local S3 server with the bucket `features`, named by the environment as users would."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, url)
        make_bucket(url)
        yield url
    server.stop()


def point_at(patch: pytest.MonkeyPatch, url: str) -> None:
    """Sets the environment as a user of the server at `url` would."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    facts = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "someone", "SECRET_ACCESS_KEY": SECRET, "REGION": "us-east-1"}
    for name, value in facts.items():
        patch.setenv(f"AWS_{name}", value)


def make_bucket(url: str) -> None:
    # urlopen keeps the proxies of whoever called it first, and a test of missing networks sets one that refuses.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    direct.open(urllib.request.Request(f"{url}/features", method="PUT", data=b"")).close()


@pytest.fixture
def bucket(endpoint: str) -> str:
    """A new prefix of the bucket."""
    return f"s3://features/{secrets.token_hex(6)}"


class OneShot:
    """A server of few connections; `answer` gives the bytes to send after each request, then it closes."""

    def __init__(self, answers: list[bytes]) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, args=(answers,), daemon=True)
        self._thread.start()

    def _serve(self, answers: list[bytes]) -> None:
        for answer in answers:
            connection, _ = self._socket.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
        self._socket.close()


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Python's web server with ranges, as nginx, Apache and others have them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked, path = self.headers.get("Range"), Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            return super().do_GET()
        start, _, stop = asked.removeprefix("bytes=").partition("-")
        data = path.read_bytes()
        part = data[int(start) : int(stop) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture(params=["ranges"])
def website(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A web server of `tmp_path`."""
    handler = Ranges if request.param == "ranges" else type("Plain", (Ranges,), {"do_GET": _plain})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield "http://{}:{}".format(*server.server_address[:2])
    server.shutdown()
    server.server_close()


def _plain(self: Ranges) -> None:
    http.server.SimpleHTTPRequestHandler.do_GET(self)


def write_small(location: str | Path) -> None:
    """The small store, written to any place as an extraction writes it."""
    writer = small.open_writer(location)
    small.write_content(writer)
    writer.write_expressions(small.expressions(writer))
    writer.finalise()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalFolder:
    """The small store on a disk."""
    root = tmp_path_factory.mktemp("local") / "store"
    write_small(root)
    return LocalFolder(root)
