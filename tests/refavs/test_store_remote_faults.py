"""What servers do wrong, and what is wrong with a URL or with credentials, is one line that names the file."""

import os
import pickle
import socket
import time
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from refavs.errors import StoreError
from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from refavs.store.backends.object_store import NUM_PARTS, PART_BYTES, RETRIES, RemoteFolder
from refavs.store.backends.remote_errors import os_error
from refavs.store.folders import open_folder
from refavs.store.format.commits import shard_of
from refavs.store.verify import verify
from tests.refavs import servers

endpoint, bucket, website, local = servers.endpoint, servers.bucket, servers.website, servers.local
small = servers.small
SECRET = servers.SECRET


@pytest.mark.process
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


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden"])  # S3's, and that of some other servers
def test_expired_credentials_are_told_apart(status: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
    answer = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()
    monkeypatch.setenv("AWS_ENDPOINT_URL", servers.OneShot([answer, answer]).url)
    folder = RemoteFolder(bucket)
    for call in (lambda: folder.read("a"), lambda: folder.write("a", b"")):
        with pytest.raises(PermissionError) as caught:
            call()
        check_error(caught.value, folder.where("a"), "the credentials have expired", "ExpiredToken", "renew them, then")


def test_bucket_that_lists_stale_loses_and_doubles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards that a listing does not show are planned again, and found in their places when they are committed."""
    location, listed, exists = "memory://lists-stale", RemoteFolder.names, RemoteFolder.exists
    servers.write_small(location)
    folder = RemoteFolder(location)
    before = {name: folder.read(name) for name in folder.names()}
    hidden = set([name for name in before if shard_of(name)][::2])

    def stale(self: RemoteFolder, under: str = "") -> list[str]:
        return [name for name in listed(self, under) if name not in hidden]

    def found(self: RemoteFolder, name: str) -> bool:
        hidden.discard(name)  # from now on it is listed too
        return exists(self, name)

    monkeypatch.setattr(RemoteFolder, "names", stale)
    monkeypatch.setattr(RemoteFolder, "exists", found)
    servers.write_small(location)
    assert not hidden
    assert {name: folder.read(name) for name in folder.names()} == before


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
        with pytest.raises(OSError, match=f"bytes {start} to {stop} were requested, it has 5") as caught:
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


@pytest.mark.long
def test_server_that_ended_is_a_connection_error(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    servers.point_at(monkeypatch, url)
    servers.make_bucket(url)
    folder = RemoteFolder("s3://features/a")
    folder.write("b", bytes(NUM_PARTS * PART_BYTES // 4))
    blob = folder.open("b")
    server.stop()
    for call in (lambda: blob.read(0, blob.num_bytes), lambda: folder.names(), lambda: folder.write("b", b"")):
        with pytest.raises(ConnectionError) as caught:
            call()
        check_error(caught.value, caught.value.filename, "look at the network and the endpoint")


def test_server_killed_in_the_middle_of_an_answer_is_a_connection_error(
    hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = b'Last-Modified: Sun, 22 Nov 2026 00:00:00 GMT\r\nETag: "x"\r\nConnection: close\r\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n" + facts + b"\r\n"
    half = b"HTTP/1.1 206 OK\r\nContent-Length: 1000\r\nContent-Range: bytes 0-999/1000\r\n" + facts + b"\r\n"
    server = servers.OneShot([head, half + b"x" * 500])
    servers.point_at(monkeypatch, server.url)
    blob = RemoteFolder("s3://features/a").open("b")
    with pytest.raises(ConnectionError) as caught:
        blob.read(0, 1000)
    check_error(caught.value, "s3://features/a/b")


BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@pytest.mark.parametrize("status", ["503 Slow Down", "500 Internal Server Error", "429 Too Many Requests"])
def test_busy_server_is_asked_again(hasty: None, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    head = b"Connection: close\r\nContent-Length: "
    busy = b"HTTP/1.1 %s\r\n%s%d\r\n\r\n%s" % (status.encode(), head, len(BUSY), BUSY)
    facts = b'Last-Modified: Sun, 22 Nov 2026 00:00:00 GMT\r\nETag: "x"\r\n'
    server = servers.OneShot([busy, b"HTTP/1.1 200 OK\r\n" + facts + head + b"3\r\n\r\nabc", busy, busy])
    servers.point_at(monkeypatch, server.url)
    folder = RemoteFolder("s3://features/a")
    assert folder.read("b") == b"abc"
    with pytest.raises(ConnectionError) as caught:
        folder.read("b")
    check_error(caught.value, "s3://features/a/b", "the server was busy or failed at every attempt", status[:4])


@pytest.mark.slow
def test_server_that_never_answers_is_given_up_after_15_s(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        servers.point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(TimeoutError) as caught:
            RemoteFolder("s3://features/a").read("b")
        assert time.monotonic() - started > 10
    check_error(caught.value, "s3://features/a/b", "the server does not answer in time")


def test_server_that_ignores_conditions_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    done = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n'
    server = servers.OneShot([done, done])
    servers.point_at(monkeypatch, server.url)
    with pytest.raises(OSError, match="the server ignores conditional puts") as caught:
        RemoteFolder("s3://features/a").create("lease.json", b"mine")
    check_error(caught.value, "s3://features/a/lease.json")


def test_server_without_conditions_says_so(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"<Error><Code>NotImplemented</Code><Message>A header implies what is not there</Message></Error>"
    answer = b"HTTP/1.1 501 Not Implemented\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    server = servers.OneShot([answer] * 10)
    servers.point_at(monkeypatch, server.url)
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


@pytest.mark.parametrize("website", ["plain"], indirect=True)
def test_website_without_ranges_is_refused(website: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    with pytest.raises(OSError, match="does not support what a store needs") as caught:
        open_folder(website).open("a").read(1, 3)
    check_error(caught.value, f"{website}/a")


@pytest.mark.long
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


@pytest.mark.long
def test_unreachable_store_is_not_damage(
    local: LocalFolder, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    servers.point_at(monkeypatch, url)
    servers.make_bucket(url)
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


def test_upload_that_arrived_cut_short_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda store, key, file, **options: put(store, key, file.read_bytes()[:10]))
    folder = RemoteFolder(bucket)
    scratch = folder.scratch("c.0")
    scratch.write_bytes(bytes(100))
    with pytest.raises(OSError, match="10 bytes of 100 arrived") as caught:
        folder.publish(scratch, "c.0")
    check_error(caught.value, folder.where("c.0"))
    scratch.unlink()
