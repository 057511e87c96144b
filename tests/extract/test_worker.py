"""Shards computed by a worker in this process, on the synthetic benchmark and on bad input."""

import csv
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extract.encoders.mask2former import TINY
from extract.encoders.roberta import RobertaEncoder
from extract.encoders.tokens import SHIPPED, read_tokenizer
from extract.media.clip import frame_size, read_media
from extract.pipeline.worker import Worker
from refavs.data.layouts import Clip, Source, read_source
from refavs.data.masks import read_masks
from refavs.errors import DatasetError, WeightsError
from refavs.steps import Steps
from refavs.store.format.mask_rows import unpack_mask
from refavs.store.format.schema import OBJECTS, object_key
from refavs.store.reader import FeatureStore
from refavs.synthetic.write import write_benchmark
from tests.extract.command import extract, jobs_of, open_store, streams_of

# Long, as what they read is made by encoders, or drawn.
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("small_networks")]

STREAMS = streams_of()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "synthetic"
    write_benchmark(root, num_clips=3, seed=5, size=96, videos=False)
    return root


@pytest.fixture(scope="module")
def store(bench: Path) -> tuple[Source, FeatureStore]:
    source = read_source(bench)
    results = extract(source, bench.parent / "store", STREAMS)
    assert not any(result.failures or result.error for result in results)
    return source, FeatureStore(bench.parent / "store")


@pytest.mark.long
def test_worker_stores_what_the_encoders_make(store: tuple[Source, FeatureStore]) -> None:
    source, features = store
    rows = {clip_id: row for row, clip_id in features.clips["id"].items()}
    assert set(rows) == {clip.id for clip in source.clips}
    media = read_media(source.clips[0], Steps(10), *STREAMS.inputs())
    for id, stream in STREAMS.of("visual", "audio").items():
        encoder = STREAMS.encoders[stream.encoder]
        (made,) = encoder.encode([encoder.prepare(media.taken(encoder.takes))], [stream.level])
        for name, array in stream.part(made).items():
            (row,) = features.rows(f"clips/{id}/{name}", [rows[source.clips[0].id]])
            assert np.array_equal(features.read(f"clips/{id}/{name}", row).numpy(), array)


def test_worker_stores_masks_and_texts(store: tuple[Source, FeatureStore]) -> None:
    source, features = store
    first = source.objects[0]
    row = next(row for row, facts in features.objects.iterrows()
               if (facts["clip_id"], facts["fid"]) == (first.clip_id, first.fid))  # fmt: skip
    packed = features.read("objects/mask", int(row)).numpy()
    expected = read_masks(list(first.masks.values()))
    assert np.array_equal(unpack_mask(packed, 96), expected)
    assert set(features.texts["text"]) == set(source.expressions["text"])
    text = source.expressions["text"].iloc[0]
    sample = next(sample for sample in features if sample.text_string == text)
    encoder = STREAMS.encoders["tiny-roberta"]
    (expected,) = encoder.encode([encoder.prepare(text)], [""])
    assert np.array_equal(sample.text.numpy(), expected["features"])


def test_worker_leaves_an_expression_for_every_row(store: tuple[Source, FeatureStore]) -> None:
    source, features = store
    assert list(features.expressions["uid"]) == list(source.expressions["uid"])
    assert list(features.expressions["text"]) == list(source.expressions["text"])
    assert features.random_weights and features.finished


def test_plan_of_a_complete_store_is_empty(bench: Path, store: tuple[Source, FeatureStore]) -> None:
    source, features = store
    assert jobs_of(open_store(features.location, STREAMS), source, STREAMS) == []


def test_plan_starts_with_clips_and_is_small(bench: Path, tmp_path: Path) -> None:
    import pickle

    source = read_source(bench)
    jobs = jobs_of(open_store(tmp_path / "s", STREAMS), source, STREAMS)
    assert [job.kind for job in jobs] == ["clips", "text", "objects"]
    assert [shard.table for shard in jobs[0].shards] == ["visual/tiny-swin/pixel_decoder", "audio/tiny-vggish"]
    assert all(len(pickle.dumps(job)) < 20_000 for job in jobs)


def damaged(bench: Path, root: Path) -> Source:
    """A copy in which one clip's frame is cut off and one mask has another size than its frame."""
    shutil.copytree(bench, root)
    source = read_source(root)
    clip, other = source.clips[0], next(one for one in source.objects if one.clip_id != source.clips[0].id)
    frame, mask = clip.frames[4], other.masks[2]
    frame.write_bytes(frame.read_bytes()[:100])
    Image.new("L", (50, 40), 255).save(mask)  # pyright: ignore[reportArgumentType]
    return source


@pytest.mark.long
def test_worker_lists_unreadable_units_and_computes_the_others(bench: Path, tmp_path: Path) -> None:
    source = damaged(bench, tmp_path / "copy")
    results = extract(source, tmp_path / "store", STREAMS)
    failures = {key: reason for result in results for key, reason in result.failures.items()}
    bad_clip = source.clips[0].id
    bad_object = next(key for key in failures if "/" in key)
    assert set(failures) == {bad_clip, bad_object}
    assert "4.jpg cannot be read" in failures[bad_clip] and "40x50 pixels" in failures[bad_object]
    features = FeatureStore(tmp_path / "store")
    assert set(features.expressions["clip_id"]) == {clip.id for clip in source.clips} - {bad_clip}
    lost = [
        clip == bad_clip or object_key(clip, fid) == bad_object
        for clip, fid in zip(source.expressions["clip_id"], source.expressions["fid"], strict=True)
    ]
    assert any(lost) and not all(lost) and len(features.expressions) == len(source.expressions) - sum(lost)


@pytest.mark.long
def test_worker_retries_failures_after_the_input_is_repaired(bench: Path, tmp_path: Path) -> None:
    source = damaged(bench, tmp_path / "copy")
    extract(source, tmp_path / "store", STREAMS)
    for folder in ("media", "gt_mask"):
        shutil.copytree(bench / folder, tmp_path / "copy" / folder, dirs_exist_ok=True)
    results = extract(source, tmp_path / "store", STREAMS)
    assert results and not any(result.failures for result in results)
    assert len(FeatureStore(tmp_path / "store").expressions) == len(source.expressions)


def test_worker_returns_an_error_of_the_whole_shard(bench: Path, tmp_path: Path) -> None:
    source = read_source(bench)
    writer = open_store(tmp_path / "store", STREAMS)
    job = next(job for job in jobs_of(writer, source, STREAMS) if job.kind == "objects")
    worker = Worker(str(tmp_path / "store"), STREAMS, 1)
    shutil.rmtree(tmp_path / "store" / "objects")
    (tmp_path / "store" / "objects").touch()
    result = worker.run(job)
    assert isinstance(result.error, OSError) and result.num_done == 0 and "Traceback" in result.trace
    assert not writer.committed(OBJECTS)


def test_expressions_without_an_object_keep_their_clip(bench: Path, tmp_path: Path) -> None:
    source = read_source(bench)
    source.expressions.loc[0, "fid"] = -1
    extract(source, tmp_path / "store", STREAMS)
    table = FeatureStore(tmp_path / "store").expressions
    assert len(table) == len(source.expressions) and table["object"][0] == -1 and (table["object"][1:] >= 0).all()


@pytest.mark.long
def test_videos_without_expressions_are_stored_alone(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "bench", num_clips=1, seed=3, size=96, videos=1)
    source = read_source(tmp_path / "bench" / "videos")
    assert [result.kind for result in extract(source, tmp_path / "store", STREAMS)] == ["clips"]
    features = FeatureStore(tmp_path / "store")
    assert len(features.clips) == 1 and len(features.expressions) == 0


def test_frame_size_is_that_of_the_file(bench: Path) -> None:
    assert frame_size(read_source(bench).clips[0]) == (96, 96)


def test_frame_size_needs_the_header_alone(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "0.jpg")
    whole = (tmp_path / "0.jpg").read_bytes()
    clip = Clip(id="a", frames=(tmp_path / "0.jpg",))
    (tmp_path / "0.jpg").write_bytes(whole[:-400])
    assert frame_size(clip) == (200, 300)
    (tmp_path / "0.jpg").write_bytes(b"<html>")
    with pytest.raises(DatasetError, match=r"0\.jpg cannot be read"):
        frame_size(clip)
    (tmp_path / "0.jpg").unlink()
    with pytest.raises(DatasetError, match=r"0\.jpg is missing"):
        frame_size(clip)


def test_real_expressions_that_are_too_long_are_counted(shared: Path) -> None:
    """All of them go through a tokenizer of RoBERTa's kind: without loss, and the long ones named."""
    with open(shared / "data" / "metadata.csv", newline="", encoding="utf-8") as file:
        texts = sorted({row["exp"] for row in csv.DictReader(file) if row["split"] != "TODO"})
    assert len(texts) == 5226
    text = streams_of("base").encoders["roberta-base"]
    assert isinstance(text, RobertaEncoder)
    tokenizer = read_tokenizer([SHIPPED])
    encodings = tokenizer.encode_batch(texts)
    assert [tokenizer.decode(encoding.ids) for encoding in encodings] == texts
    expected = {text: len(encoding.ids) for text, encoding in zip(texts, encodings, strict=True) if len(encoding) > 25}
    assert text.overlong(texts) == expected and 0 < len(expected) < len(texts)


def test_node_with_other_weights_is_refused(bench: Path, tmp_path: Path) -> None:
    """Driver and worker each read the file at one path, which on two nodes may be two files."""
    assert TINY.shipped is not None
    shutil.copy(TINY.shipped, tmp_path)
    streams = streams_of(kind="pretrained", folder=tmp_path)
    open_store(tmp_path / "store", streams)
    worker = Worker(str(tmp_path / "store"), pickle.loads(pickle.dumps(streams)))
    assert worker.ready().endswith(str(os.getpid()))
    with (tmp_path / "visual.safetensors").open("ab") as file:
        file.write(b" ")
    other = r"^node .* has other weights .* for visual/tiny-swin/pixel_decoder than the driver"
    with pytest.raises(WeightsError, match=other):
        worker.ready()
    (tmp_path / "visual.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"visual.safetensors, which the driver has, cannot be read on node"):
        worker.ready()
