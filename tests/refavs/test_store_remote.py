"""Folders keep one contract wherever they lie; a store written to S3 is the one written locally; faults of servers."""

import fcntl
import functools
import http.server
import importlib.util
import json
import logging
import multiprocessing
import os
import pickle
import secrets
import shutil
import socket
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from moto.server import ThreadedMotoServer

from refavs.errors import StoreError
from refavs.store import FeatureStore, object_key, text_key
from refavs.store.files import write_all
from refavs.store.folder import Folder, LocalFolder, open_folder
from refavs.store.remote import NUM_PARTS, PART_BYTES, RETRIES, RemoteFolder
from refavs.store.remote_errors import os_error
from refavs.store.verify import verify

_spec = importlib.util.spec_from_file_location("small_store", Path(__file__).parent / "small_store.py")
assert _spec is not None and _spec.loader is not None
small = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small)
SECRET = "not-to-be-printed"
KINDS = ("local", "memory", "s3")


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
    urllib.request.urlopen(urllib.request.Request(f"{url}/features", method="PUT", data=b"")).close()


@pytest.fixture
def bucket(endpoint: str) -> str:
    """A new prefix of the bucket."""
    return f"s3://features/{secrets.token_hex(6)}"


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder of each kind."""
    if request.param == "s3":
        return open_folder(request.getfixturevalue("bucket"))
    return open_folder(tmp_path / "store" if request.param == "local" else f"memory://{secrets.token_hex(6)}")


def publish(folder: Folder, name: str, data: bytes) -> None:
    """Writes a file as a shard is written."""
    scratch = folder.scratch(name)
    file = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    write_all(file, memoryview(data))
    os.close(file)
    folder.publish(scratch, name)
    assert not scratch.exists()


def test_folder_gives_back_what_was_written(folder: Folder) -> None:
    assert isinstance(folder, Folder)
    for data in (b"old", b"", b"new" * 1000):
        folder.write("clips/zarr.json", data)
        assert folder.read("clips/zarr.json") == data and folder.exists("clips/zarr.json")
        assert folder.open("clips/zarr.json").num_bytes == len(data)
    assert folder.where("clips/zarr.json") == f"{folder.location}/clips/zarr.json"


def test_folder_has_no_file_that_nobody_wrote(folder: Folder) -> None:
    folder.write("clips/a", b"a")
    for name in ("clips/b", "clips", "a", "clips/a/b"):
        assert not folder.exists(name)
    for call in (folder.read, folder.open):
        with pytest.raises(FileNotFoundError) as caught:
            call("clips/b")
        assert caught.value.filename == folder.where("clips/b") and "\n" not in str(caught.value)
    folder.remove("clips/b")


def test_folder_lists_files_at_any_depth(folder: Folder) -> None:
    assert folder.names() == [] == folder.names("commits")
    names = ["commits/b.json", "zarr.json", "clips/audio/vggish/c.0.0.0", "commits/a.json", "commits-old/c.json"]
    for name in names:
        folder.write(name, b"x")
    assert folder.names() == sorted(names)
    assert folder.names("commits") == ["commits/a.json", "commits/b.json"]
    assert folder.names("clips/audio") == ["clips/audio/vggish/c.0.0.0"]
    folder.remove("zarr.json")
    assert not folder.exists("zarr.json") and "zarr.json" not in folder.names()


def test_folder_publishes_a_file_whole(folder: Folder) -> None:
    folder.write("clips/c.0", b"before")
    scratch = folder.scratch("clips/c.0")
    scratch.write_bytes(b"half")
    assert folder.read("clips/c.0") == b"before"
    scratch.unlink()
    data = np.random.default_rng(0).integers(0, 256, 2 * PART_BYTES + 17, np.uint8)
    publish(folder, "clips/c.0", data.tobytes())
    blob = folder.open("clips/c.0")
    assert blob.num_bytes == data.size
    for start, stop in [(0, data.size), (5, 5), (data.size - 3, data.size), (PART_BYTES - 1, 2 * PART_BYTES + 1)]:
        found = blob.read(start, stop)
        assert found.dtype == np.uint8 and found.flags.writeable and np.array_equal(found, data[start:stop])
    blob.read(0, 100)[:] = 0
    assert folder.read("clips/c.0") == data.tobytes()


def test_folder_sweeps_only_what_nobody_writes(folder: Folder) -> None:
    folder.write("zarr.json", b"x")
    folder.sweep()
    assert folder.names() == ["zarr.json"]


def test_folder_creates_once(folder: Folder) -> None:
    assert folder.create("lease.json", b"mine") and not folder.create("lease.json", b"yours")
    assert not folder.create("lease.json", b"mine")
    assert folder.read("lease.json") == b"mine"
    folder.remove("lease.json")
    assert folder.create("lease.json", b"yours")


def test_folder_swaps_only_what_it_still_holds(folder: Folder) -> None:
    folder.write("zarr.json", b"x")
    assert not folder.swap("lease.json", b"old", b"new") and not folder.exists("lease.json")
    folder.write("lease.json", b"old")
    assert folder.swap("lease.json", b"old", b"new") and folder.read("lease.json") == b"new"
    assert not folder.swap("lease.json", b"old", b"newer") and folder.read("lease.json") == b"new"
    assert folder.swap("lease.json", b"new", b"new")


def test_folder_lets_one_of_many_succeed(folder: Folder) -> None:
    folder.write("zarr.json", b"x")
    contenders = [f"writer {number}".encode() for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda data: open_folder(folder.location).create("lease.json", data), contenders))
        assert created.count(True) == 1 and folder.read("lease.json") == contenders[created.index(True)]
        held = folder.read("lease.json")
        swap = lambda data: open_folder(folder.location).swap("lease.json", held, data + b"!")  # noqa: E731
        swapped = list(pool.map(swap, contenders))
        assert swapped.count(True) == 1 and folder.read("lease.json") == contenders[swapped.index(True)] + b"!"


def test_folder_is_the_same_after_pickling(folder: Folder) -> None:
    folder.write("zarr.json", b"x")
    other = pickle.loads(pickle.dumps(folder))
    assert other.location == folder.location and other.read("zarr.json") == b"x"
    assert SECRET.encode() not in pickle.dumps(folder)


def test_sweep_removes_scratch_files_of_writers_that_are_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, living = (Path(tempfile.mkdtemp(prefix=f"refavs-{os.getuid()}-")) for _ in range(2))
    for folder in (dead, living):
        (folder / "c.0").write_bytes(b"half")
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert RemoteFolder("memory://swept").sweep() == [str(dead / "c.0")]
    os.close(lock)
    assert not dead.exists() and (living / "c.0").exists()


def test_memory_is_shared_by_name() -> None:
    one, other = RemoteFolder("memory://some"), RemoteFolder("memory://other")
    one.write("a", b"1")
    RemoteFolder("memory://some/below").write("b", b"2")
    assert open_folder("memory://some/").names() == ["a", "below/b"] and other.names() == []


def test_spawned_process_reads_what_this_one_wrote(bucket: str) -> None:
    folder = RemoteFolder(bucket)
    folder.write("a", b"1")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(RemoteFolder.read, (folder, "a")) == b"1"


def test_forked_process_is_refused_instead_of_waiting_for_ever(bucket: str) -> None:
    folder = RemoteFolder(bucket)
    folder.write("a", b"1")
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            folder.read("a")
        except OSError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    with os.fdopen(reading) as pipe:
        assert "was forked from one that had read a remote store; start it by spawn" in pipe.read()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("ftp://host/a", "store ftp://host/a has the scheme 'ftp'; accepted: a path, s3://bucket/prefix"),
        (f"s3://someone:{SECRET}@bucket/a", "store s3://bucket/a carries a user or password; give credentials by the"),
        (f"https://host/a?X-Amz-Signature={SECRET}", "store https://host/a has a query or a fragment; accepted"),
        ("s3:///a", "store s3:///a names no bucket or host"),
        ("memory://", "store memory:// names no bucket or host"),
        ("s3://bucket/a/../b", "or has an empty part, '.' or '..'"),
        ("s3://bucket/a//b", "or has an empty part"),
    ],
)
def test_url_that_is_not_accepted_is_refused_in_one_line(location: str, message: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_folder(location)
    assert message in str(caught.value) and SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_google_folder_needs_no_network_before_its_first_use() -> None:
    folder = RemoteFolder("gs://bucket/some/prefix")
    assert folder.key("zarr.json") == "some/prefix/zarr.json" and folder.where("a") == "gs://bucket/some/prefix/a"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """One repetition of a failed request is enough for a test."""
    monkeypatch.setitem(RETRIES, "max_retries", 1)


def check_error(error: OSError, url: str, *parts: str) -> None:
    """One line with the URL and what was found, without secrets."""
    text = str(error)
    assert error.filename == url and url in text and "\n" not in text and SECRET not in text
    assert error.strerror is not None and all(part in text for part in parts), text
    assert error.__cause__ is None


def test_missing_bucket_is_named(endpoint: str) -> None:
    folder = RemoteFolder("s3://no-such-bucket/a")
    for call in (lambda: folder.read("b"), lambda: folder.names(), lambda: folder.write("b", b""),
                 lambda: folder.create("b", b"")):  # fmt: skip
        with pytest.raises(FileNotFoundError) as caught:
            call()
        check_error(caught.value, caught.value.filename, "NoSuchBucket", "s3://no-such-bucket/a")


def test_wrong_credentials_are_refused_by_name(endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    RemoteFolder(bucket).write("a", b"1")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    folder = RemoteFolder(bucket)
    for call in (lambda: folder.read("a"), lambda: folder.open("a"), lambda: folder.exists("a")):
        with pytest.raises(PermissionError) as caught:
            call()
        check_error(caught.value, folder.where("a"), "the server refuses it (403 Forbidden")


def test_lack_of_credentials_says_how_to_give_them() -> None:
    said = ("Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error: error "
            "sending request\n\nDebug source:\n kind: Connect")  # fmt: skip
    check_error(os_error(OSError(said), "s3://b/a"), "s3://b/a", "no credentials were accepted", "set AWS_ACCESS_KEY")


def test_errors_hold_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    said = ("x - Server returned non-2xx status code: 403 Forbidden: <Error><Code>SignatureDoesNotMatch</Code>"
            f"<Message>key {SECRET}</Message><StringToSign>{SECRET}</StringToSign></Error>\n\nDebug {SECRET}")
    error = os_error(OSError(said), "s3://b/a")
    check_error(error, "s3://b/a", "403 Forbidden: SignatureDoesNotMatch: key <AWS_SECRET_ACCESS_KEY>")
    assert isinstance(error, PermissionError)


def test_range_beyond_the_end_is_refused(bucket: str) -> None:
    folder = RemoteFolder(bucket)
    folder.write("a", b"12345")
    for start, stop in ((0, 6), (7, 9), (-1, 2), (3, 2)):
        with pytest.raises(OSError, match=f"bytes {start} to {stop} are asked for, it has 5") as caught:
            folder.open("a").read(start, stop)
        check_error(caught.value, folder.where("a"))


def test_object_cut_short_after_it_was_opened_is_refused(bucket: str) -> None:
    folder = RemoteFolder(bucket)
    folder.write("a", b"1" * 100)
    blob = folder.open("a")
    folder.write("a", b"1" * 50)
    with pytest.raises(OSError, match="replaced by another file while it was open") as caught:
        blob.read(20, 80)
    check_error(caught.value, folder.where("a"))


def test_server_that_ended_is_a_connection_error(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    point_at(monkeypatch, url)
    make_bucket(url)
    folder = RemoteFolder("s3://features/a")
    folder.write("b", bytes(NUM_PARTS * PART_BYTES // 4))
    blob = folder.open("b")
    server.stop()
    started = time.monotonic()
    for call in (lambda: blob.read(0, blob.num_bytes), lambda: folder.names(), lambda: folder.write("b", b"")):
        with pytest.raises(ConnectionError) as caught:
            call()
        check_error(caught.value, caught.value.filename, "look at the network and the endpoint")
    assert time.monotonic() - started < 45


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


def test_server_killed_in_the_middle_of_an_answer_is_a_connection_error(
    hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = b'Last-Modified: Sun, 22 Nov 2026 00:00:00 GMT\r\nETag: "x"\r\nConnection: close\r\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n" + facts + b"\r\n"
    half = b"HTTP/1.1 206 OK\r\nContent-Length: 1000\r\nContent-Range: bytes 0-999/1000\r\n" + facts + b"\r\n"
    server = OneShot([head, half + b"x" * 500])
    point_at(monkeypatch, server.url)
    blob = RemoteFolder("s3://features/a").open("b")
    with pytest.raises(ConnectionError) as caught:
        blob.read(0, 1000)
    check_error(caught.value, "s3://features/a/b")


@pytest.mark.slow
def test_server_that_never_answers_is_given_up_after_15_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            RemoteFolder("s3://features/a").read("b")
        assert time.monotonic() - started < 16
    check_error(caught.value, "s3://features/a/b", "the server does not answer in time")


def test_server_that_ignores_conditions_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    done = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
    server = OneShot([done, done])
    point_at(monkeypatch, server.url)
    with pytest.raises(OSError, match="the server ignores conditional puts") as caught:
        RemoteFolder("s3://features/a").create("lease.json", b"mine")
    check_error(caught.value, "s3://features/a/lease.json")


def test_server_without_conditions_says_so(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"<Error><Code>NotImplemented</Code><Message>A header implies what is not there</Message></Error>"
    answer = b"HTTP/1.1 501 Not Implemented\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    server = OneShot([answer] * 10)
    point_at(monkeypatch, server.url)
    with pytest.raises(OSError, match=r"does not support what a store needs \(501 Not Impl") as caught:
        RemoteFolder("s3://features/a").create("lease.json", b"mine")
    check_error(caught.value, "s3://features/a/lease.json")


def test_lost_answer_of_a_create_that_succeeded_is_success(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    put, calls = obstore.put, []

    def twice(*args, **options):  # what the library does when the first answer is lost
        calls.append(put(*args, **options))
        return put(*args, **options)

    monkeypatch.setattr(obstore, "put", twice)
    assert RemoteFolder(bucket).create("lease.json", b"mine") and len(calls) == 1


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


def test_website_is_read_by_ranges_and_never_written(website: str, tmp_path: Path) -> None:
    LocalFolder(tmp_path).write("a b/c.0", bytes(range(100)))
    folder = open_folder(website)
    assert folder.read("a b/c.0") == bytes(range(100))
    assert folder.open("a b/c.0").read(10, 13).tolist() == [10, 11, 12]
    assert folder.exists("a b/c.0") and not folder.exists("a b/c.1")
    with pytest.raises(FileNotFoundError):
        folder.open("a b/c.1")
    for call in (lambda: folder.write("a", b""), lambda: folder.create("a", b""), lambda: folder.swap("a", b"", b"1"),
                 lambda: folder.remove("a"), lambda: folder.scratch("a"), lambda: folder.sweep()):  # fmt: skip
        with pytest.raises(OSError, match="a store behind a web server can only be read"):
            call()


@pytest.mark.parametrize("website", ["plain"], indirect=True)
def test_website_without_ranges_is_refused(website: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(OSError, match="does not support what a store needs") as caught:
        open_folder(website).open("a").read(1, 3)
    check_error(caught.value, f"{website}/a")


def write_small(location: str | Path) -> None:
    """The small store, written to any place as an extraction writes it."""
    writer = small.open_writer(location)
    small.write_rows(writer, "text", [text_key(text) for text in small.TEXTS])
    small.write_rows(writer, "clips", small.CLIPS)
    small.write_rows(writer, "objects", [object_key(clip, 1) for clip in small.CLIPS])
    writer.write_expressions(small.expressions(writer))
    writer.finalise()


def without_seconds(name: str, data: bytes) -> bytes:
    """The bytes of a file, of a commit record without the one fact that differs between two runs."""
    facts = json.loads(data) if name.startswith("commits/") else {}
    if "seconds" not in facts.get("record", {}):
        return data
    return json.dumps(facts["record"] | {"seconds": 0}, sort_keys=True).encode()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> LocalFolder:
    """The small store on a disk."""
    root = tmp_path_factory.mktemp("local") / "store"
    write_small(root)
    return LocalFolder(root)


@pytest.fixture(scope="module")
def remote(endpoint: str) -> RemoteFolder:
    """The small store on S3, written there."""
    location = "s3://features/small/store"
    write_small(location)
    return RemoteFolder(location)


def test_store_on_s3_is_byte_for_byte_the_local_one(local: LocalFolder, remote: RemoteFolder) -> None:
    assert remote.names() == local.names()
    for name in local.names():
        assert without_seconds(name, remote.read(name)) == without_seconds(name, local.read(name)), name


def test_samples_from_s3_are_those_of_the_disk(local: LocalFolder, remote: RemoteFolder) -> None:
    ours, theirs = FeatureStore(local.location), FeatureStore(remote.location)
    assert theirs.finished and theirs.fingerprint == ours.fingerprint and len(theirs) == len(ours) > 0
    for one, other in zip(ours, pickle.loads(pickle.dumps(theirs)), strict=True):
        assert (one.uid, one.text_string) == (other.uid, other.text_string)
        assert one.visual.keys() == other.visual.keys()
        for name in one.visual:
            assert torch.equal(one.visual[name], other.visual[name])
        for name in ("audio", "text", "valid", "mask"):
            assert torch.equal(getattr(one, name), getattr(other, name))
    theirs.sample(0).audio.zero_()
    assert torch.equal(theirs.sample(0).audio, ours.sample(0).audio)


def test_a_second_run_on_s3_has_nothing_to_do(remote: RemoteFolder) -> None:
    before = {name: remote.read(name) for name in remote.names()}
    write_small(remote.location)
    assert {name: remote.read(name) for name in remote.names()} == before


def test_zarr_python_and_tensorstore_read_the_store_on_s3(endpoint: str, remote: RemoteFolder) -> None:
    import tensorstore
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    store = FeatureStore(remote.location)
    bucket = S3Store("features", prefix="small/store", client_options={"allow_http": True})
    group = zarr.open_group(ObjectStore(bucket, read_only=True), mode="r")
    for path in (small.MAPS, small.AUDIO):
        spec = {"driver": "zarr3", "kvstore": {
            "driver": "s3", "bucket": "features", "path": f"small/store/{path}/", "endpoint": endpoint,
            "aws_region": "us-east-1", "aws_credentials": {"type": "environment"}}}  # fmt: skip
        array = tensorstore.open(spec).result()
        for row in store.clips.index:
            expected = store.read(path, row).numpy()
            assert np.array_equal(np.asarray(group[path][row]), expected)
            assert np.array_equal(array[row].read().result(), expected)


def test_flipped_byte_on_s3_is_found_and_named(local: LocalFolder, bucket: str) -> None:
    folder = RemoteFolder(bucket)
    for name in local.names():
        folder.write(name, local.read(name))
    assert verify(bucket).damage == ()
    name = f"{small.MAPS}/c.0.0.0.0.0"
    data = bytearray(folder.read(name))
    data[10] ^= 4
    folder.write(name, bytes(data))
    (damage,) = verify(bucket).damage
    assert damage.where == name and damage.keys == ("a",)
    with pytest.raises(StoreError, match="its checksum is"):
        FeatureStore(bucket).read(small.MAPS, 0)
    folder.write(name, bytes(data)[:-100])
    with pytest.raises(StoreError, match="its commit record says"):
        FeatureStore(bucket).read(small.MAPS, 0)


def test_store_behind_a_web_server_is_read_and_verified(
    local: LocalFolder, website: str, tmp_path: Path
) -> None:
    shutil.copytree(local.path, tmp_path / "store")
    store = FeatureStore(f"{website}/store")
    assert store.fingerprint == FeatureStore(local.location).fingerprint
    assert torch.equal(store.sample(3).audio, FeatureStore(local.location).sample(3).audio)
    assert verify(f"{website}/store").damage == ()
    (tmp_path / "store/commits/listing.json").unlink()
    with pytest.raises(StoreError, match="there is no list of commit records, which a store behind a web server needs"):
        FeatureStore(f"{website}/store")


def test_store_that_is_out_of_reach_is_no_damage(
    local: LocalFolder, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    point_at(monkeypatch, url)
    make_bucket(url)
    folder = RemoteFolder("s3://features/gone")
    for name in local.names():
        folder.write(name, local.read(name))
    store = FeatureStore(folder.location)
    server.stop()
    with pytest.raises(StoreError, match="nothing need be wrong with it: look at the connection") as caught:
        store.read(small.MAPS, 0)
    assert "remove" not in str(caught.value)
    with pytest.raises(StoreError, match=r"s3://features/gone/zarr.json: the connection failed") as caught:
        FeatureStore(folder.location)
    assert isinstance(caught.value, ConnectionError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_store_that_is_not_on_the_server_is_named(endpoint: str) -> None:
    with pytest.raises(StoreError, match="no feature store at s3://features/nothing"):
        FeatureStore("s3://features/nothing")
