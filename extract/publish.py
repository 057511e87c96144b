"""refavs-store publish: makes a store ready to be read by others, with a card and the checksums of its files."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from extract.damage import report, verified
from extract.encoders.protocol import EncoderSetup
from extract.encoders.registry import make_encoder
from extract.encoders.weights import WeightSource
from refavs.errors import ConfigError, StoreError
from refavs.files.atomic import LOCK
from refavs.store.backends.base import LocalFolder, write_if_changed
from refavs.store.format.mask_rows import told_size
from refavs.store.format.schema import says_random
from refavs.store.reader import FeatureStore
from refavs.terminal.command import Exit
from refavs.terminal.console import ProgressBar
from refavs.terminal.printing import printable, readable_bytes, say

CARD, SUMS = "README.md", "SHA256SUMS"
MARK = "<!-- written by refavs-store publish -->"


def publish(location: str, licence: str, title: str | None) -> int:
    """Writes the card and the checksums into a store that is finished and whole.

    Raises:
        StoreError: the store is not on a disk, not finished, or has a card of somebody else.
    """
    if "://" in location:
        raise StoreError(f"{location} is not a folder; publish the local store, then copy it there")
    store, folder = FeatureStore(location), LocalFolder(Path(location))
    if not store.finished:
        raise StoreError(f"the extraction of {location} did not finish; run the same refavs-extract command again")
    if folder.exists(CARD) and MARK.encode() not in folder.read(CARD):
        raise StoreError(f"{folder.where(CARD)} is not one of ours, and is not overwritten; move it away")
    verdict = verified(location)
    if verdict.damage:
        report(location, verdict)
        return Exit.FAILURES
    names = [name for name in folder.names() if name not in (SUMS, CARD, LOCK, "lease.json", "extract.jsonl")]
    num_bytes = sum((folder.path / name).stat().st_size for name in names)
    write_if_changed(folder, CARD, card(store, licence, title or folder.path.name, num_bytes).encode())
    write_if_changed(folder, SUMS, "".join(_sums(folder, sorted([*names, CARD]))).encode())
    say(f"{location} is ready: {len(names) + 2} files, {readable_bytes(num_bytes)}, fingerprint {store.fingerprint}")
    say(f"its zarr.json tells where it was made: {store.schema.source}")
    say(f"to share it, copy the folder to a web server or a bucket, or to the hub: hf upload ORG/NAME {location} "
        "--repo-type dataset")  # fmt: skip
    say("others read it there: refavs-sweep GRID --store https://HOST/PATH (or s3://..., hf://datasets/ORG/NAME) "
        "--cache DIR")  # fmt: skip
    return Exit.COMPLETE


def card(store: FeatureStore, licence: str, title: str, num_bytes: int) -> str:
    """The card of a store, in the form of the hub's dataset cards."""
    title = printable(title)
    streams = {name: store.schema.streams[name].fingerprint for name in store.streams}
    lines = [
        "---", f"license: {json.dumps(licence)}", f"pretty_name: {json.dumps(title)}", "tags: [refavs, zarr]", "---",
        MARK, f"# {title}", "",
        f"Frozen features of {len(store.clips):,} clips for referring audio-visual segmentation: a Zarr v3 store, "
        f"{readable_bytes(num_bytes)}, {store.seconds} seconds a clip, {store.steps.fps:g} frames per second, masks of "
        f"{told_size(store.mask_size)}. Fingerprint `{store.fingerprint}`.", "",
        *(["**Some encoders have random weights: these features only show that the system works.**", ""]
          if any(map(says_random, streams.values())) else []),
        "| stream | encoder | weights | licence of the encoder |", "|---|---|---|---|",
        *(f"| {name} | {_cell(facts.get('name'))} | {_cell(facts.get('weights'))} | {_cell(_licence(facts))} |"
          for name, facts in streams.items()), "",
        "| split | expressions |", "|---|---|",
        *(f"| {_cell(split)} | {count:,} |" for split, count in sorted(Counter(store.expressions["split"]).items())),
        "", f"Licence of the features: {_cell(licence)}. The videos that they come from have their own.", "",
        "```", "sha256sum --check --quiet SHA256SUMS", "refavs-sweep GRID --store THIS-ADDRESS --cache DIR",
        'python -c "from refavs.store import FeatureStore; print(FeatureStore(\'THIS-ADDRESS\').sample(0))"', "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _licence(fingerprint: dict[str, Any]) -> str:
    """The licence of an encoder's weights, as far as its name tells."""
    setup = EncoderSetup(weights=WeightSource(kind="random"))
    try:
        return make_encoder(str(fingerprint.get("name")), setup).licence
    except ConfigError:  # of a package that is not installed here
        return "unknown"


def _cell(value: object) -> str:
    """A value of somebody's store as plain text in a table of Markdown."""
    text = printable(str(value))[:100]
    return "".join(f"\\{letter}" if letter in "\\|<>*_`[]()#!" else letter for letter in text)


def _sums(folder: LocalFolder, names: list[str]) -> Iterator[str]:
    """The lines of the file of checksums, as sha256sum writes them."""
    with ProgressBar("checksums", len(names), "files") as bar:
        for name in names:
            with open(folder.path / name, "rb") as file:
                yield f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n"
            bar.advance()
