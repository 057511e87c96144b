"""Addresses of stores in repositories on the Hugging Face hub, which is read as a web server."""

import os

from refavs.errors import StoreError


def hub_url(location: str) -> tuple[str, dict[str, str]]:
    """The web address of a folder in a repository of the hub, and the headers of requests to it.

    `HF_ENDPOINT` names another hub, `HF_TOKEN` opens private repositories, as for the hub's own tools.

    Args:
        location: `hf://datasets/ORG/NAME[@REVISION]/path`, or without `datasets/` for a model's repository.

    Raises:
        StoreError: it names no repository.
    """
    kind, *parts = location.removeprefix("hf://").split("/")
    kind, parts = (f"{kind}/", parts) if kind in ("datasets", "spaces") else ("", [kind, *parts])
    if len(parts) < 2 or not all(parts):
        raise StoreError(f"{location} names no repository; accepted: hf://datasets/ORG/NAME[@REVISION]/path")
    name, _, revision = parts[1].partition("@")
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    path = "/".join([f"{hub}/{kind}{parts[0]}/{name}/resolve/{revision or 'main'}", *parts[2:]])
    return path, {"authorization": f"Bearer {token}"} if token else {}
