"""Reads the benchmark's metadata.csv into a table of valid rows and a report of all peculiar rows by kind.

Only this file knows the benchmark's splits by name.
"""

import os
import re
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from refavs.choices import Role
from refavs.data.layouts.report import SourceReport
from refavs.errors import DatasetError
from refavs.files.tables import composed, plain_name, read_rows

TRAIN, VAL, TEST_S, TEST_U, TEST_N = "train", "val", "test_s", "test_u", "test_n"
SPLITS: dict[str, Role] = {
    TRAIN: "train", VAL: "validation", TEST_S: "test", TEST_U: "test", TEST_N: "null-test",
}  # fmt: skip
TITLES = {TEST_S: "Seen", TEST_U: "Unseen", "mix": "Mix", TEST_N: "Null"}  # as in the paper's tables
UNFINISHED_SPLIT = "TODO"
COLUMNS = ("vid", "uid", "split", "fid", "exp")
NULL_PREFIX = "null_"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLACEHOLDERS = {"", "no", "none", "null", "nan", "na", "todo", "tbd", "unknown"}


class _Row(NamedTuple):
    number: int
    uid: str
    vid: str
    media_id: str
    split: str
    fid: int
    text: str
    null: bool

    @property
    def object_name(self) -> str:
        return self.uid.rsplit("_", 2)[1]


def read_metadata(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, SourceReport]:
    """Reads a metadata.csv in the benchmark's format (`vid,uid,split,fid,exp`).

    Returns:
        The rows kept, with columns `uid, vid, media_id, split, fid, text`, indexed by the row's 0-based number in the
        file, and the report. Expressions are unchanged. A uid may occur more than once.

    Reading takes about 700 bytes of memory per row.

    Raises:
        DatasetError: the file or a column is missing, or a row is invalid: an unknown split, a fid that is not a whole
            number, a uid without a plain media id, a control character in an id.
    """
    path = Path(path)
    rows = _parsed(path)
    unfinished = [row for row in rows if row.split == UNFINISHED_SPLIT]
    empty = [row for row in rows if row.split != UNFINISHED_SPLIT and not row.text.strip()]
    kept = [row for row in rows if row.split != UNFINISHED_SPLIT and row.text.strip()]
    report = SourceReport(source=str(path), splits=(*SPLITS, UNFINISHED_SPLIT))
    report.counts.update(rows_total=len(rows), rows_kept=len(kept))
    report.note_rows("split_todo", (row.number for row in unfinished))
    report.note_rows("empty_text", (row.number for row in empty))
    _note_rows(report, kept)
    _note_texts(report, kept)
    _note_overlaps(report, kept)
    train_texts = {row.text for row in kept if row.split == TRAIN}
    for split in SPLITS:
        _note_group(report, f"_{split}", [row for row in kept if row.split == split], train_texts)
    _note_group(report, "_todo", unfinished, train_texts)
    return _table(kept), report


def media_id_of(uid: str, where: str) -> str:
    """Extracts the media id from a uid of the form `<media id>_<object>_<number>`.

    Raises:
        DatasetError: the uid has another form, or its media id is not a plain name.
    """
    parts = uid.rsplit("_", 2)
    if len(parts) != 3:
        raise DatasetError(f"{where}: uid {uid!r} is not of the form <media id>_<object>_<number>; correct that row.")
    return plain_name(parts[0], where)


def is_placeholder(text: str) -> bool:
    """Whether an expression is a placeholder such as "NO." instead of a sentence."""
    return re.sub(r"[\W_]+", "", text.lower()) in _PLACEHOLDERS


def _parsed(path: Path) -> list[_Row]:
    accepted = (*SPLITS, UNFINISHED_SPLIT)
    rows = []
    # Rows share one string object per distinct value.
    shared: dict[str, str] = {}
    plain: dict[str, str] = {}
    for number, (vid, uid, split, fid, text) in enumerate(read_rows(path, COLUMNS)):
        where = f"{path}, row {number}"
        if split not in accepted:
            raise DatasetError(
                f"{where}: unknown split {split!r}; accepted: {', '.join(accepted)}. Correct or remove that row."
            )
        if not (fid.isascii() and fid.isdigit() and len(fid) <= 9):
            raise DatasetError(
                f"{where}: fid {fid!r}; accepted: the whole number of its mask folder fid_<fid>. Correct that row."
            )
        name = uid.rsplit("_", 2)[0]
        media_id = plain.get(name) if uid.count("_") > 1 else None
        if media_id is None:
            media_id = plain[name] = composed(media_id_of(uid, where))
        if _CONTROL.search(uid) or _CONTROL.search(vid):
            raise DatasetError(f"{where}: a control character in uid {uid!r} or vid {vid!r}; correct that row.")
        rows.append(_Row(
            number, uid, shared.setdefault(vid, vid), media_id, shared.setdefault(split, split), int(fid),
            shared.setdefault(text, text), media_id.startswith(NULL_PREFIX),
        ))  # fmt: skip
    return rows


def _table(rows: list[_Row]) -> pd.DataFrame:
    index = [row.number for row in rows]
    kinds = {"uid": "str", "vid": "str", "media_id": "str", "split": "str", "fid": "int64", "text": "str"}
    columns = {
        name: pd.Series([getattr(row, name) for row in rows], index=index, dtype=kind) for name, kind in kinds.items()
    }
    return pd.DataFrame(columns)


def _repeats(keys: Iterable[Hashable]) -> list[bool]:
    """For each key, whether it occurred before."""
    seen: set[Hashable] = set()
    return [key in seen or bool(seen.add(key)) for key in keys]


def _note_rows(report: SourceReport, kept: list[_Row]) -> None:
    def note(kind: str, chosen: Iterable[bool]) -> None:
        report.note_rows(kind, (row.number for row, odd in zip(kept, chosen, strict=True) if odd))

    note("repeated_uids", _repeats(row.uid for row in kept))
    fids: dict[str, set[int]] = {}
    for row in kept:
        fids.setdefault(row.uid, set()).add(row.fid)
    report.note_names("uid_with_two_fids", (uid for uid, distinct in fids.items() if len(distinct) > 1))
    note("repeated_expressions", _repeats((row.split, row.vid, row.fid, row.text) for row in kept))
    note("media_id_not_vid", (row.media_id != row.vid for row in kept))
    note("null_rows", (row.null for row in kept))
    note("null_rows_crossed", (row.media_id.startswith(f"{NULL_PREFIX}c-") for row in kept))
    note("null_rows_muted", (row.media_id.startswith(f"{NULL_PREFIX}m-") for row in kept))
    _note_group(report, "", kept, None)


def _note_texts(report: SourceReport, kept: list[_Row]) -> None:
    kinds: dict[str, Callable[[str], bool]] = {
        "error_text": lambda text: re.match(r"\W*error\b", text.lower()) is not None,
        "placeholder_text": is_placeholder,
        "non_ascii_text": lambda text: not text.isascii(),
        "padded_text": lambda text: text != text.strip(),
        "double_space_text": lambda text: "  " in text,
    }
    # Many rows share a text, so each distinct text is examined once.
    num_words = {text: len(text.split()) for text in {row.text for row in kept}}
    for kind, is_odd in kinds.items():
        odd = {text for text in num_words if is_odd(text)}
        report.note_rows(kind, (row.number for row in kept if row.text in odd) if odd else ())
    report.counts["distinct_texts_normalised"] = len({" ".join(text.lower().split()) for text in num_words})
    report.counts["longest_text_words"] = max(num_words.values(), default=0)
    report.counts["total_text_words"] = sum(num_words[row.text] for row in kept)


def _note_overlaps(report: SourceReport, kept: list[_Row]) -> None:
    null_texts = {row.text for row in kept if row.split == TEST_N}
    leaks = [row for row in kept if row.text in null_texts]
    train_leaks = [row for row in leaks if row.split == TRAIN]
    report.note_names("null_texts", null_texts)
    report.note_rows("null_text_rows_train_null", (row.number for row in train_leaks if row.null))
    report.note_rows("null_text_rows_train_object", (row.number for row in train_leaks if not row.null))
    report.note_rows("null_text_rows_test_object", (row.number for row in leaks if row.split in (TEST_S, TEST_U)))

    vids = {split: {row.vid for row in kept if row.split == split} for split in SPLITS}
    train = [row for row in kept if row.split == TRAIN]
    report.note_names("null_vids_of_test_s", vids[TEST_N] & vids[TEST_S])
    report.note_names(
        "null_vids_of_train", {row.vid for row in train if row.null} & {row.vid for row in train if not row.null}
    )
    test = vids[TEST_S] | vids[TEST_U] | vids[TEST_N]
    across = (vids[TRAIN] & vids[VAL]) | (vids[TRAIN] & test) | (vids[VAL] & test)
    report.note_names("vids_across_splits", across)

    unseen, seen = ({row.object_name for row in kept if row.split == split} for split in (TEST_U, TRAIN))
    report.note_names("unseen_objects", unseen)
    report.note_names("unseen_objects_absent_from_train", unseen - seen)
    report.note_names("unseen_objects_in_train", unseen & seen)


def _note_group(report: SourceReport, suffix: str, rows: list[_Row], train_texts: set[str] | None) -> None:
    counts = {
        "media": len({row.media_id for row in rows}),
        "vids": len({row.vid for row in rows}),
        "objects": len({(row.media_id, row.fid) for row in rows}),
        "distinct_texts": len({row.text for row in rows}),
        "null_media": len({row.media_id for row in rows if row.null}),
    }
    if train_texts is not None:
        counts["rows"] = len(rows)
        counts["null_rows"] = sum(row.null for row in rows)
        counts["repeated_expressions"] = sum(_repeats((row.vid, row.fid, row.text) for row in rows))
        counts["text_in_train"] = sum(row.text in train_texts for row in rows)
    report.counts.update({f"{kind}{suffix}": count for kind, count in counts.items()})
