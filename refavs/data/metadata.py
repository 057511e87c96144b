"""The benchmark's metadata.csv: a table of its good rows and a report that names every odd one by kind."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from refavs.errors import DatasetError
from refavs.files.plain_file import UnusableFileError
from refavs.files.source_files import open_file, reason_of

SPLITS = ("train", "val", "test_s", "test_u", "test_n")
UNFINISHED_SPLIT = "TODO"
# A store pads its texts to the longest one; an expression has some ten words, and a page of text is an open quote.
MOST_CHARACTERS = 2_000
_LINE_CHARACTERS = 2**20
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
    "media": "distinct media ids",
    "vids": "distinct vids",
    "objects": "distinct mask folders (media id and fid)",
    "null_media": "distinct media ids of null rows",
    "distinct_texts": "distinct expressions, what the text encoder needs",
    "distinct_texts_normalised": "distinct expressions but for case and white space",
    "longest_text_words": "words of the longest expression",
    "total_text_words": "words of all expressions",
    "null_texts": "distinct expressions of test_n; where few other rows have them, they alone give nulls away",
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
    "null_masks_not_shipped": "nulls without a mask folder; their masks are empty by definition, so nothing is lost",
    "not_files": "entries with a video's name left out: folders, pipes, sockets or devices; no clip is lost",
    "unusable_names": "videos left out: their names cannot be ids; rename them (no '..', no control characters, UTF-8)",
}
_PER_SPLIT = {
    "rows": "rows",
    "media": "media ids",
    "vids": "vids",
    "objects": "mask folders",
    "distinct_texts": "distinct expressions",
    "null_rows": "null rows",
    "null_media": "null media ids",
    "repeated_expressions": "repeated rows",
    "text_in_train": "rows with an expression of train",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# The last range is what Python makes of bytes in a file name that are not UTF-8.
_SEPARATOR_OR_CONTROL = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]")
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

    def lines(self, num_examples: int = 3) -> list[str]:
        """The report: each kind that occurs, its count, meaning and first rows or names; then the splits."""
        lines = [self.source]
        for kind, meaning in _KINDS.items():
            if not self.counts.get(kind):
                continue
            rows, names = self.rows.get(kind, []), self.names.get(kind, [])
            examples = [f"row {row}" for row in rows] + [repr(name) for name in names]
            shown = ", ".join(examples[:num_examples]) + (", ..." if len(examples) > num_examples else "")
            lines.append(f"{self.counts[kind]:>8,}  {kind}: {meaning}" + (f" [{shown}]" if shown else ""))
        for split in (*SPLITS, UNFINISHED_SPLIT):
            found = {kind: self.counts.get(f"{kind}_{split.lower()}", 0) for kind in _PER_SPLIT}
            if any(found.values()):
                numbers = ", ".join(f"{count:,} {_PER_SPLIT[kind]}" for kind, count in found.items() if count)
                lines.append(f"{split}: {numbers}")
        return lines


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


def read_metadata(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, MetadataReport]:
    """Reads a metadata.csv of the benchmark's form (`vid,uid,split,fid,exp`).

    Returns:
        The rows kept, with columns `uid, vid, media_id, split, fid, text` and the row's 0-based place in the file as
        index, and the report. Expressions are left exactly as they are. A uid may occur more than once.

    Memory is about 700 bytes for each row.

    Raises:
        DatasetError: no such file, a missing column, or a row that cannot be read: an unknown split, a fid that is not
            a whole number, a uid that does not hold a plain media id, a control character in an id.
    """
    path = Path(path)
    rows = _parsed(path)
    unfinished = [row for row in rows if row.split == UNFINISHED_SPLIT]
    empty = [row for row in rows if row.split != UNFINISHED_SPLIT and not row.text.strip()]
    kept = [row for row in rows if row.split != UNFINISHED_SPLIT and row.text.strip()]
    report = MetadataReport(source=str(path))
    report.counts.update(rows_total=len(rows), rows_kept=len(kept))
    report.note_rows("split_todo", (row.number for row in unfinished))
    report.note_rows("empty_text", (row.number for row in empty))
    _note_rows(report, kept)
    _note_texts(report, kept)
    _note_overlaps(report, kept)
    train_texts = {row.text for row in kept if row.split == "train"}
    for split in SPLITS:
        _note_group(report, f"_{split}", [row for row in kept if row.split == split], train_texts)
    _note_group(report, "_todo", unfinished, train_texts)
    return _table(kept), report


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
        DatasetError: `name` is empty, starts with a dot, or has a path separator, `..`, a control character or
            bytes that are not UTF-8.
    """
    if not name or name.startswith(".") or ".." in name or _SEPARATOR_OR_CONTROL.search(name):
        raise DatasetError(
            f"{where}: {name!r} cannot be a media id; accepted: a plain name without '/', '\\', '..', control "
            "characters, bytes that are not UTF-8 or a leading dot. Correct or remove it."
        )
    return name


def composed(name: str) -> str:
    """A name in Unicode's composed form: a table and a disk, of a Mac say, may write one letter in two ways."""
    return unicodedata.normalize("NFC", name)


def is_placeholder(text: str) -> bool:
    """Whether an expression is none: letters such as "NO." where a sentence should be."""
    return re.sub(r"[\W_]+", "", text.lower()) in _PLACEHOLDERS


def read_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The `columns` of each row of a CSV file in UTF-8 with a header, values as they are; other columns are skipped.

    Raises:
        DatasetError: no such file, no plain file, no text in UTF-8, a column that is missing or there twice, or a row
            with another number of fields than the header.
    """
    columns = tuple(columns)
    expected = f"expected a CSV file with columns {','.join(columns)}"
    try:
        with open_file(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
            reader = csv.reader(_lines(file, path), strict=True)
            header = next(reader, [])
            places = _places(path, header, columns)
            for fields in reader:
                if len(fields) != len(header) and fields:
                    raise DatasetError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields where the header has {len(header)}; "
                        "put an expression with a comma in double quotes."
                    )
                if fields:
                    values = tuple(fields[place] for place in places)
                    _refuse_long(values, columns, f"{path}, line {reader.line_num}")
                    yield values
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such file; {expected}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} cannot be read as CSV in UTF-8 ({error}); save it as such.") from error
    except UnusableFileError as error:
        raise DatasetError(f"{path} cannot be read ({error}); {expected}.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({reason_of(error)}); copy it again.") from error


def _lines(file: io.TextIOWrapper, path: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(_LINE_CHARACTERS):
        number += 1
        if "\0" in line:
            raise DatasetError(f"{path}, line {number} holds a NUL byte, as UTF-16 or a damaged file does; save it as "
                               "CSV in UTF-8.")  # fmt: skip
        if len(line) == _LINE_CHARACTERS:
            raise DatasetError(f"{path}, line {number} is longer than {_LINE_CHARACTERS:,} characters; save the file "
                               "as CSV with one row to a line.")  # fmt: skip
        yield line


def _refuse_long(values: tuple[str, ...], columns: tuple[str, ...], where: str) -> None:
    for name, value in zip(columns, values, strict=True):
        if len(value) > MOST_CHARACTERS:
            raise DatasetError(
                f"{where}: {name} has {len(value):,} characters; accepted: up to {MOST_CHARACTERS:,}. Shorten it, or "
                "close the double quote that is open there."
            )


def _places(path: Path, header: list[str], columns: tuple[str, ...]) -> list[int]:
    missing = [name for name in columns if name not in header]
    twice = [name for name in columns if header.count(name) > 1]
    if missing or twice:
        found = f"no column {', '.join(map(repr, missing))}" if missing else f"column {twice[0]!r} more than once"
        raise DatasetError(
            f"{path}: {found} among {', '.join(header) or 'nothing'}; accepted: a CSV file with a header of "
            f"{','.join(columns)}, each once."
        )
    return [header.index(name) for name in columns]


def _parsed(path: Path) -> list[_Row]:
    accepted = (*SPLITS, UNFINISHED_SPLIT)
    rows = []
    # One object for each distinct value, which a clip's rows share.
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
    """For each key, whether it came before."""
    seen: set[Hashable] = set()
    return [key in seen or bool(seen.add(key)) for key in keys]


def _note_rows(report: MetadataReport, kept: list[_Row]) -> None:
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


def _note_texts(report: MetadataReport, kept: list[_Row]) -> None:
    kinds: dict[str, Callable[[str], bool]] = {
        "error_text": lambda text: re.match(r"\W*error\b", text.lower()) is not None,
        "placeholder_text": is_placeholder,
        "non_ascii_text": lambda text: not text.isascii(),
        "padded_text": lambda text: text != text.strip(),
        "double_space_text": lambda text: "  " in text,
    }
    # Many rows share a text, so each is looked at once.
    num_words = {text: len(text.split()) for text in {row.text for row in kept}}
    for kind, is_odd in kinds.items():
        odd = {text for text in num_words if is_odd(text)}
        report.note_rows(kind, (row.number for row in kept if row.text in odd) if odd else ())
    report.counts["distinct_texts_normalised"] = len({" ".join(text.lower().split()) for text in num_words})
    report.counts["longest_text_words"] = max(num_words.values(), default=0)
    report.counts["total_text_words"] = sum(num_words[row.text] for row in kept)


def _note_overlaps(report: MetadataReport, kept: list[_Row]) -> None:
    null_texts = {row.text for row in kept if row.split == "test_n"}
    leaks = [row for row in kept if row.text in null_texts]
    train_leaks = [row for row in leaks if row.split == "train"]
    report.note_names("null_texts", null_texts)
    report.note_rows("null_text_rows_train_null", (row.number for row in train_leaks if row.null))
    report.note_rows("null_text_rows_train_object", (row.number for row in train_leaks if not row.null))
    report.note_rows("null_text_rows_test_object", (row.number for row in leaks if row.split in ("test_s", "test_u")))

    vids = {split: {row.vid for row in kept if row.split == split} for split in SPLITS}
    train = [row for row in kept if row.split == "train"]
    report.note_names("null_vids_of_test_s", vids["test_n"] & vids["test_s"])
    report.note_names(
        "null_vids_of_train", {row.vid for row in train if row.null} & {row.vid for row in train if not row.null}
    )
    test = vids["test_s"] | vids["test_u"] | vids["test_n"]
    across = (vids["train"] & vids["val"]) | (vids["train"] & test) | (vids["val"] & test)
    report.note_names("vids_across_splits", across)

    unseen, seen = ({row.object_name for row in kept if row.split == split} for split in ("test_u", "train"))
    report.note_names("unseen_objects", unseen)
    report.note_names("unseen_objects_absent_from_train", unseen - seen)
    report.note_names("unseen_objects_in_train", unseen & seen)


def _note_group(report: MetadataReport, suffix: str, rows: list[_Row], train_texts: set[str] | None) -> None:
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
