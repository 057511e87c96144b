"""A store in a repository on the hub: its address, its token, and where its files really lie."""

import functools
import http.server
import threading
from collections.abc import Iterator

import pytest
import torch

from refavs.errors import StoreError
from refavs.store import FeatureStore
from refavs.store.backends.base import LocalFolder
from refavs.store.backends.hub import hub_url
from refavs.store.verify import verify
from tests.refavs import servers

local = servers.local
PUBLIC, PRIVATE = "/datasets/lab/features/resolve/main", "/datasets/lab/private/resolve/v1.2"


class _Hub(servers.Ranges):
    """Answers as the hub does: small files itself, others by a redirection to another place."""

    def do_HEAD(self) -> None:
        if self._moved():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self._moved():
            super().do_GET()

    def _moved(self) -> bool:
        """Goes to the file if it is here, else says where it is."""
        if self.path.startswith(PRIVATE) and self.headers["Authorization"] != "Bearer a-secret":
            self.send_error(401, "Invalid username or password.")
            return False
        if self.path.startswith("/blobs/"):
            assert self.headers["Authorization"] is None or self.headers["Host"].startswith("127.0.0.1")
            self.path = self.path.removeprefix("/blobs")
            return True
        name = self.path.removeprefix(PRIVATE).removeprefix(PUBLIC)
        if name == self.path:
            self.send_error(404)
            return False
        if name.endswith(".json"):
            self.path = name
            return True
        self.send_response(302)
        self.send_header("Location", f"/blobs{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False


@pytest.fixture
def hub(local: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub with the small store in two repositories."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Hub, directory=str(local.path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", "http://{}:{}".format(*server.server_address[:2]))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.long
def test_store_on_the_hub_is_the_local_one(hub: None, local: LocalFolder) -> None:
    store, here = FeatureStore("hf://datasets/lab/features"), FeatureStore(local.path)
    assert store.fingerprint == here.fingerprint and store.location == "hf://datasets/lab/features"
    for index in range(len(here)):
        assert torch.equal(store.sample(index).text, here.sample(index).text)
    assert verify(store.location).damage == ()


def test_private_repository_needs_its_token(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    location = "hf://datasets/lab/private@v1.2"
    with pytest.raises(StoreError, match=r"no credentials were accepted .*set HF_TOKEN"):
        FeatureStore(location)
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    assert len(FeatureStore(location))
    with pytest.raises(StoreError, match="no feature store at hf") as caught:
        FeatureStore("hf://datasets/lab/nothing")
    assert "a-secret" not in str(caught.value)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub = "https://huggingface.co"
    assert hub_url("hf://datasets/lab/features") == (f"{hub}/datasets/lab/features/resolve/main", {})
    assert hub_url("hf://datasets/lab/features@v1/a/b")[0] == f"{hub}/datasets/lab/features/resolve/v1/a/b"
    assert hub_url("hf://lab/features")[0] == f"{hub}/lab/features/resolve/main"
    for wrong in ("hf://datasets/lab", "hf://lab", "hf://datasets"):
        with pytest.raises(StoreError, match="names no repository; accepted: hf://datasets/ORG/NAME"):
            FeatureStore(wrong)
