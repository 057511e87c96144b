"""The benchmark's metadata.csv: a table of its good rows and a report that names every odd one by kind."""

import csv
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from refavs.errors import DatasetError

SPLITS = ("train", "val", "test_s", "test_u", "test_n")
UNFINISHED_SPLIT = "TODO"
COLUMNS = ("vid", "uid", "split", "fid", "exp")
NULL_PREFIX = "null_"

_KINDS = {
    "rows_total": "rows of the file",
    "rows_kept": "rows kept, each an expression of one of the five splits",
    "split_todo": "rows left out: split TODO, annotation never finished",
    "empty_text": "rows left out: no expression",
    "repeated_uids": "rows whose uid an earlier row has; all kept, so a uid does not name a row",
    "uid_with_two_fids": "uids whose rows point at different objects",
    "repeated_expressions": "rows with the vid, fid and expression of an earlier row of their split",
    "null_rows": "rows whose expression refers to nothing; their media id is not their vid",
    "null_rows_crossed": "null rows of media null_c-*, another clip's sound",
    "null_rows_muted": "null rows of media null_m-*, no sound",
    "media_id_not_vid": "rows whose media id (uid without object and number) is not their vid",
    "error_text": "rows whose expression is an error message",
    "placeholder_text": "rows whose expression is a placeholder such as 'NO.'",
    "non_ascii_text": "rows whose expression has letters outside ASCII",
    "padded_text": "rows whose expression starts or ends with white space",
    "double_space_text": "rows whose expression has two spaces in a row",
    "distinct_texts": "distinct expressions of the rows kept, what the text encoder needs",
    "distinct_texts_normalised": "distinct expressions but for case and white space",
    "longest_text_words": "words of the longest expression",
    "null_texts": "distinct expressions of test_n: a list of them solves it without looking or listening",
    "null_text_rows_train_null": "null train rows with an expression of test_n",
    "null_text_rows_train_object": "train rows with an expression of test_n that do refer to an object",
    "null_text_rows_test_object": "test_s and test_u rows with an expression of test_n",
    "null_vids_of_test_s": "vids of test_n that test_s has too",
    "null_vids_of_train": "vids of null train rows that other train rows have too",
    "vids_across_splits": "vids in more than one of train, val and test",
    "unseen_objects": "object names of test_u",
    "unseen_objects_absent_from_train": "object names of test_u that train lacks",
    "unseen_objects_in_train": "object names of test_u that train has as well, so not unseen",
    "missing_media": "clips left out with their expressions: no media of theirs was found",
    "missing_masks": "objects left out: no mask folder; their expressions stay, with fid -1",
}
_PER_SPLIT = {
    "rows": "rows of split {}",
    "media": "media ids of split {}",
    "vids": "distinct vids of split {}",
    "objects": "mask folders (media id and fid) of split {}",
    "distinct_texts": "distinct expressions of split {}",
    "null_rows": "null rows of split {}",
    "null_media": "null media ids of split {}",
    "repeated_expressions": "rows of {} with the vid, fid and expression of an earlier row of it",
    "text_in_train": "rows of {} whose expression occurs in train",
}
_PLACEHOLDERS = {"", "no", "none", "null", "nan", "na", "todo", "tbd", "unknown"}


@dataclass(frozen=True, kw_only=True)
class MetadataReport:
    """What is odd about a source: counts by kind, the rows of a kind, and the names that a kind is about.

    A row number is the row's 0-based place in the CSV below its header.
    """

    source: str
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def note_rows(self, kind: str, rows: Iterable[int]) -> None:
        """Counts the rows of one kind and remembers which they are."""
        self.rows[kind] = [int(row) for row in rows]
        self.counts[kind] = len(self.rows[kind])

    def note_names(self, kind: str, names: Iterable[str]) -> None:
        """Counts the clips, uids, objects or expressions of one kind and remembers which they are."""
        self.names[kind] = sorted(names)
        self.counts[kind] = len(self.names[kind])

    def render(self, num_examples: int = 3) -> str:
        """The report as text: a line per kind with its count, its meaning and the first few rows or names."""
        lines = [self.source]
        for kind, count in self.counts.items():
            examples = [str(row) for row in self.rows.get(kind, [])] or [repr(n) for n in self.names.get(kind, [])]
            shown = ", ".join(examples[:num_examples]) + (", ..." if len(examples) > num_examples else "")
            prefix = "row " if kind in self.rows and len(examples) == 1 else "rows " if kind in self.rows else ""
            lines.append(f"{count:>7,}  {kind}: {_meaning(kind)}" + (f" [{prefix}{shown}]" if shown else ""))
        return "\n".join(lines)


def read_metadata(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, MetadataReport]:
    """Reads a metadata.csv of the benchmark's form (`vid,uid,split,fid,exp`).

    Returns:
        The rows kept, with columns `uid, vid, media_id, split, fid, text` and the row's 0-based place in the file as
        index, and the report. Expressions are left exactly as they are. A uid may occur more than once.

    Raises:
        DatasetError: no such file, a missing column, or a row that cannot be read: an unknown split, a fid that is not
            a whole number, a uid that does not hold a plain media id.
    """
    path = Path(path)
    table = _parsed(path)
    report = MetadataReport(source=str(path))
    report.counts["rows_total"] = len(table)
    unfinished = table["split"] == UNFINISHED_SPLIT
    empty = (table["text"].str.strip() == "") & ~unfinished
    kept = table[~unfinished & ~empty]
    report.counts["rows_kept"] = len(kept)
    report.note_rows("split_todo", table.index[unfinished])
    report.note_rows("empty_text", table.index[empty])
    _note_rows(report, kept)
    _note_texts(report, kept)
    _note_overlaps(report, kept)
    for split, rows in kept.groupby("split", sort=False):
        _note_split(report, str(split), rows, set(kept["text"][kept["split"] == "train"]))
    return kept, report


def media_id_of(uid: str, where: str) -> str:
    """The media id in a uid of the form `<media id>_<object>_<number>`.

    Raises:
        DatasetError: the uid has another form, or its media id is not a plain name.
    """
    parts = uid.rsplit("_", 2)
    if len(parts) != 3:
        raise DatasetError(f"{where}: uid {uid!r} is not of the form <media id>_<object>_<number>; correct that row.")
    return plain_name(parts[0], where)


def plain_name(name: str, where: str) -> str:
    """Returns `name` where it can safely name a folder inside another.

    Raises:
        DatasetError: `name` is empty, starts with a dot, or has a path separator, `..` or a control character.
    """
    if not name or name.startswith(".") or ".." in name or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise DatasetError(
            f"{where}: {name!r} cannot be a media id; accepted: a plain name without '/', '\\', '..', control "
            "characters or a leading dot. Correct or remove it."
        )
    return name


def read_rows(path: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV file in UTF-8 with a header that holds at least `columns`, values as they are.

    Raises:
        DatasetError: no such file, no text, a missing column, or a row with another number of fields than the header.
    """
    columns = tuple(columns)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            missing = [name for name in columns if name not in header]
            if missing:
                raise DatasetError(
                    f"{path}: no column {', '.join(map(repr, missing))} among {', '.join(header) or 'nothing'}; "
                    f"accepted: a CSV file with a header of {','.join(columns)}."
                )
            rows = []
            for fields in reader:
                if len(fields) != len(header) and fields:
                    raise DatasetError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields where the header has {len(header)}; "
                        "put an expression with a comma in double quotes."
                    )
                if fields:
                    rows.append(dict(zip(header, fields, strict=True)))
            return rows
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; expected a CSV file with columns {','.join(columns)}.") from None
    except IsADirectoryError:
        raise DatasetError(f"{path} is a folder; expected a CSV file with columns {','.join(columns)}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as CSV in UTF-8 ({error}); save it as such.") from error


def _meaning(kind: str) -> str:
    if kind in _KINDS:
        return _KINDS[kind]
    split = next(name for name in SPLITS if kind.endswith(f"_{name}"))
    return _PER_SPLIT[kind.removesuffix(f"_{split}")].format(split)


def _parsed(path: Path) -> pd.DataFrame:
    rows = read_rows(path, COLUMNS)
    accepted = (*SPLITS, UNFINISHED_SPLIT)
    media_ids, fids = [], []
    for number, row in enumerate(rows):
        where = f"{path}, row {number}"
        if row["split"] not in accepted:
            raise DatasetError(f"{where}: unknown split {row['split']!r}; accepted: {', '.join(accepted)}.")
        if not re.fullmatch(r"[0-9]{1,9}", row["fid"]):
            raise DatasetError(f"{where}: fid {row['fid']!r}; accepted: a whole number, the fid_<fid> of its masks.")
        media_ids.append(media_id_of(row["uid"], where))
        fids.append(int(row["fid"]))
    columns = {name: pd.Series([row[name] for row in rows], dtype="str") for name in ("uid", "vid", "split", "exp")}
    return pd.DataFrame({
        "uid": columns["uid"],
        "vid": columns["vid"],
        "media_id": pd.Series(media_ids, dtype="str"),
        "split": columns["split"],
        "fid": pd.Series(fids, dtype="int64"),
        "text": columns["exp"],
    })


def _is_null(table: pd.DataFrame) -> "pd.Series[bool]":
    return table["media_id"].str.startswith(NULL_PREFIX)


def _note_rows(report: MetadataReport, kept: pd.DataFrame) -> None:
    def note(kind: str, chosen: "pd.Series[bool]") -> None:
        report.note_rows(kind, kept.index[chosen])

    note("repeated_uids", kept.duplicated("uid"))
    num_fids = kept.groupby("uid")["fid"].nunique()
    report.note_names("uid_with_two_fids", num_fids.index[num_fids > 1])
    note("repeated_expressions", kept.duplicated(["split", "vid", "fid", "text"]))
    note("media_id_not_vid", kept["media_id"] != kept["vid"])
    note("null_rows", _is_null(kept))
    note("null_rows_crossed", kept["media_id"].str.startswith(NULL_PREFIX + "c-"))
    note("null_rows_muted", kept["media_id"].str.startswith(NULL_PREFIX + "m-"))


def _note_texts(report: MetadataReport, kept: pd.DataFrame) -> None:
    text = kept["text"]
    lowered = text.str.lower().str.split().str.join(" ")
    odd = {
        "error_text": lowered.str.match(r"\W*error\b"),
        "placeholder_text": lowered.str.replace(r"[\W_]+", "", regex=True).isin(_PLACEHOLDERS),
        "non_ascii_text": ~text.map(str.isascii).astype(bool),
        "padded_text": text != text.str.strip(),
        "double_space_text": text.str.contains("  ", regex=False),
    }
    for kind, chosen in odd.items():
        report.note_rows(kind, kept.index[chosen])
    report.counts["distinct_texts"] = text.nunique()
    report.counts["distinct_texts_normalised"] = lowered.nunique()
    report.counts["longest_text_words"] = int(text.str.split().str.len().max()) if len(kept) else 0


def _note_overlaps(report: MetadataReport, kept: pd.DataFrame) -> None:
    null, split = _is_null(kept), kept["split"]
    null_texts = set(kept["text"][split == "test_n"])
    shared = kept["text"].isin(null_texts)
    report.note_names("null_texts", null_texts)
    report.note_rows("null_text_rows_train_null", kept.index[shared & (split == "train") & null])
    report.note_rows("null_text_rows_train_object", kept.index[shared & (split == "train") & ~null])
    report.note_rows("null_text_rows_test_object", kept.index[shared & split.isin(["test_s", "test_u"])])

    vids = {name: set(kept["vid"][split == name]) for name in SPLITS}
    report.note_names("null_vids_of_test_s", vids["test_n"] & vids["test_s"])
    in_train = split == "train"
    report.note_names(
        "null_vids_of_train", set(kept["vid"][in_train & null]) & set(kept["vid"][in_train & ~null])
    )
    test = vids["test_s"] | vids["test_u"] | vids["test_n"]
    across = (vids["train"] & vids["val"]) | (vids["train"] & test) | (vids["val"] & test)
    report.note_names("vids_across_splits", across)

    objects = kept["uid"].str.rsplit("_", n=2).str[1]
    unseen, seen = set(objects[split == "test_u"]), set(objects[in_train])
    report.note_names("unseen_objects", unseen)
    report.note_names("unseen_objects_absent_from_train", unseen - seen)
    report.note_names("unseen_objects_in_train", unseen & seen)


def _note_split(report: MetadataReport, split: str, rows: pd.DataFrame, train_texts: set[str]) -> None:
    null = rows[_is_null(rows)]
    counts = {
        "rows": len(rows),
        "media": rows["media_id"].nunique(),
        "vids": rows["vid"].nunique(),
        "objects": len(rows[["media_id", "fid"]].drop_duplicates()),
        "distinct_texts": rows["text"].nunique(),
        "null_rows": len(null),
        "null_media": null["media_id"].nunique(),
        "repeated_expressions": int(rows.duplicated(["vid", "fid", "text"]).sum()),
    }
    if split != "train":
        counts["text_in_train"] = int(rows["text"].isin(train_texts).sum())
    report.counts.update({f"{kind}_{split}": count for kind, count in counts.items()})
