"""Statistics of frames: counted alike in any batches and order, written, read, merged and refused."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from refavs.errors import StatisticsError
from refavs.metrics import (
    Recorder,
    Statistics,
    concat,
    read_facts,
    statistics_blocks,
    write_statistics,
)
from refavs.metrics.frame_counts import frame_statistics, released_view
from refavs.metrics.segmentation import threshold_bins
from tests.refavs.small_predictions import TABLE, make_predictions, record


def same(first: Statistics, second: Statistics) -> None:
    pd.testing.assert_frame_equal(first.expressions, second.expressions)
    assert first.facts == second.facts and first.frames.keys() == second.frames.keys()
    for name, values in first.frames.items():
        np.testing.assert_array_equal(values, second.frames[name], err_msg=name)


def test_statistics_equal_counts_by_hand() -> None:
    probs, masks = make_predictions(5)
    found = frame_statistics(probs, masks)
    assert found["target"].dtype == np.uint32 and found["max_prob"].dtype == np.float32
    bins = threshold_bins(probs)
    for b, t in np.ndindex(*masks.shape[:2]):
        prob, mask = probs[b, t].numpy(), masks[b, t].numpy()
        for level, name in ((0.5, "50"), (0.4, "40")):
            assert found[f"pred_{name}"][b, t] == (prob > np.float32(level)).sum()
            assert found[f"hits_{name}"][b, t] == ((prob > np.float32(level)) & mask).sum()
        assert found["target"][b, t] == mask.sum()
        assert found["max_prob"][b, t] == prob.max()
        for side, name in ((mask, "object"), (~mask, "background")):
            expected = np.bincount(bins[b, t].numpy()[side], minlength=256)
            np.testing.assert_array_equal(found[name][b, t], expected)
    small_probs, small_masks = (part.numpy() for part in released_view(probs.flatten(0, 1), masks.flatten(0, 1)))
    assert small_probs.shape[1:] == (256, 256)
    flat = {name: values.reshape(-1) for name, values in found.items() if values.ndim == 2}
    np.testing.assert_array_equal(flat["released_target"], small_masks.sum((1, 2)))
    np.testing.assert_array_equal(flat["released_pred_50"], (small_probs > np.float32(0.5)).sum((1, 2)))
    np.testing.assert_array_equal(
        flat["released_hits_40"], ((small_probs > np.float32(0.4)) & small_masks).sum((1, 2))
    )


@pytest.mark.parametrize("size", [(96, 96), (384, 384), (120, 213)])
def test_released_masks_are_what_opencv_makes(size: tuple[int, int]) -> None:
    """OpenCV's rule, written out: half-pixel centres, edges repeated, 0 and 255 rounded to a whole number."""
    masks = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) > 0.995
    _, found = released_view(masks.float(), masks)
    weights = []
    for length in size:
        place = np.clip((np.arange(256) + 0.5) * length / 256 - 0.5, 0, length - 1)
        low = np.minimum(np.floor(place).astype(int), length - 1)
        matrix = np.zeros((256, length))
        np.add.at(matrix, (np.arange(256), low), 1 - (place - low))
        np.add.at(matrix, (np.arange(256), np.minimum(low + 1, length - 1)), place - low)
        weights.append(matrix)
    for mask, result in zip(masks.numpy(), found.numpy(), strict=True):
        grown = np.rint(weights[0] @ (255.0 * mask) @ weights[1].T) > 0
        np.testing.assert_array_equal(result, grown)


@pytest.mark.long
@settings(max_examples=10, deadline=None, database=None)
@given(order=st.permutations(range(len(TABLE))), sizes=st.lists(st.integers(1, 4), min_size=8, max_size=8),
       workers=st.integers(1, 3))  # fmt: skip
def test_statistics_do_not_depend_on_batches_order_or_workers(
    order: list[int], sizes: list[int], workers: int
) -> None:
    batches = []
    while order:
        size = sizes.pop() if sizes else len(order)
        batches.append(order[:size])
        order = order[size:]
    shares = [batches[worker::workers] for worker in range(workers)]
    parts = [record(share) for share in shares if share]
    parts = [pickle.loads(pickle.dumps(part)) for part in parts]  # as Ray sends them
    same(concat(reversed(parts)), record([range(len(TABLE))]))


def test_recorder_returns_the_counts_of_the_batch() -> None:
    probs, masks = make_predictions(2)
    counts = Recorder(table=TABLE, store="x").add([3, 1], probs, masks)
    np.testing.assert_array_equal(counts.pred.numpy(), (probs > 0.5).sum((2, 3)).numpy())
    np.testing.assert_array_equal(counts.hits.numpy(), ((probs > 0.5) & masks).sum((2, 3)).numpy())


def test_descriptions_come_from_the_table() -> None:
    found = record([range(len(TABLE))]).expressions
    assert found["category"].tolist()[:3] == ["cat", "dog", "cat"]
    assert found["length"].tolist()[:2] == [3, 5]
    assert found["row"].tolist() == list(range(len(TABLE)))


def test_statistics_survive_a_file_and_give_the_same_bytes(tmp_path: Path) -> None:
    whole = record([range(len(TABLE))])
    write_statistics(tmp_path / "a.parquet", whole)
    same(concat(statistics_blocks(tmp_path / "a.parquet")), whole)
    reversed_order = np.arange(len(whole))[::-1].copy()
    write_statistics(tmp_path / "b.parquet", whole.select(reversed_order))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]
    assert read_facts(tmp_path / "a.parquet")["height"] == 40


def test_blocks_without_histograms_hold_the_counts(tmp_path: Path) -> None:
    whole = record([range(len(TABLE))])
    write_statistics(tmp_path / "a.parquet", whole)
    (block,) = statistics_blocks(tmp_path / "a.parquet", histograms=())
    np.testing.assert_array_equal(block.frames["hits_50"], whole.frames["hits_50"])
    assert "object" not in block.frames


def test_blocks_without_a_wanted_split_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refavs.metrics.parquet.EXPRESSIONS_PER_GROUP", 3)
    write_statistics(tmp_path / "a.parquet", record([range(len(TABLE))]))
    blocks = list(statistics_blocks(tmp_path / "a.parquet", (), ["test_n"]))
    assert [block.expressions["split"].tolist() for block in blocks] == [["test_n", "test_n"]]
    blocks = list(statistics_blocks(tmp_path / "a.parquet", (), ["test_u"]))
    assert [block.expressions["split"].tolist() for block in blocks] == [["test_s", "test_u", "test_u"]]


@pytest.mark.parametrize("value", [math.nan, 1.5, -0.1])
def test_no_numbers_are_one_line_that_names_the_expression(value: float) -> None:
    probs, masks = make_predictions(2)
    probs[1, 0, 3, 3] = value
    recorder = Recorder(table=TABLE, store="x")
    with pytest.raises(StatisticsError, match=r"predictions of v0_1_dog_1: probabilities from .*the model has div"):
        recorder.add([0, 1], probs, masks)


def test_masks_of_another_size_are_one_line() -> None:
    probs, masks = make_predictions(2)
    with pytest.raises(StatisticsError, match=r"probabilities of shape .* and masks of shape"):
        frame_statistics(probs, masks[..., :-1])
    recorder = Recorder(table=TABLE, store="x")
    recorder.add([0, 1], probs, masks)
    with pytest.raises(StatisticsError, match=r"masks of 'v1_2_cat_2' are \(4, 40, 47\), earlier ones \(4, 40, 48\)"):
        recorder.add([2], probs[:1, ..., 1:], masks[:1, ..., 1:])


def test_parts_that_do_not_belong_together_are_refused() -> None:
    whole = record([range(len(TABLE))])
    with pytest.raises(StatisticsError, match=r"8 expressions occur in two parts, e\.g\. 'v0_0_cat_0'"):
        concat([whole, whole])
    with pytest.raises(StatisticsError, match="statistics with store of-tests and other cannot belong to one run"):
        concat([whole, Statistics(expressions=whole.expressions, frames=whole.frames,
                                  facts={**whole.facts, "store": "other"})])  # fmt: skip
    with pytest.raises(StatisticsError, match="no statistics to join"):
        concat([])
    with pytest.raises(StatisticsError, match="no expression was evaluated"):
        Recorder(table=TABLE, store="x").statistics()


def test_a_run_without_statistics_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match=r"has no statistics .*statistics.parquet.*evaluate the run again"):
        concat(statistics_blocks(tmp_path / "statistics.parquet"))


@pytest.mark.long
def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_statistics(path, record([range(len(TABLE))]))
    data = bytearray(path.read_bytes())
    for place in range(40, len(data) - 8, len(data) // 40):
        broken = bytearray(data)
        broken[place] ^= 16
        path.write_bytes(broken)
        try:
            found = concat(statistics_blocks(path))
        except StatisticsError as error:
            assert "\n" not in str(error)
        else:
            same(found, record([range(len(TABLE))]))  # a bit that means nothing
    for text in (b"", b"PAR1", bytes(data[: len(data) // 2])):
        path.write_bytes(text)
        with pytest.raises(StatisticsError, match=r"cannot be used .*evaluate the run again"):
            concat(statistics_blocks(path))


def rewritten(path: Path, change) -> Path:
    write_statistics(path, record([range(len(TABLE))]))
    pq.write_table(change(pq.read_table(path)), path)
    return path


def facts_changed(table: pa.Table, **facts) -> pa.Table:
    known = json.loads(table.schema.metadata[b"refavs.statistics"])
    return table.replace_schema_metadata({b"refavs.statistics": json.dumps({**known, **facts})})


CHANGES = {
    "its facts are missing": lambda table: table.replace_schema_metadata({}),
    "holds statistics of version 9, this program reads 1": lambda table: facts_changed(table, version=9),
    "has facts": lambda table: facts_changed(table, height="40"),
    "has column target of type None": lambda table: table.drop_columns("target"),
    "has column target of type double": lambda table: table.set_column(
        table.column_names.index("target"), "target", table["target"].cast(pa.float64())
    ),
    "its rows are not complete expressions": lambda table: table.take(list(reversed(range(len(table))))),
    "rows are missing or empty": lambda table: table.slice(1),
    "a histogram does not count the 1600 pixels": lambda table: facts_changed(table, width=40),
    "a probability is not a number": lambda table: table.set_column(
        table.column_names.index("max_prob"), pa.field("max_prob", pa.float32()),
        pa.array(np.full(len(table), np.nan, np.float32)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", CHANGES)
def test_files_of_another_kind_are_one_line(tmp_path: Path, message: str) -> None:
    path = rewritten(tmp_path / "a.parquet", CHANGES[message])
    with pytest.raises(StatisticsError, match=message) as caught:
        concat(statistics_blocks(path))
    assert "\n" not in str(caught.value)
