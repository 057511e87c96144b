"""Report on a source: rows, clips and objects with a peculiarity, by kind."""

from collections.abc import Iterable
from dataclasses import dataclass, field

_KINDS = {
    "rows_total": "rows of the file",
    "rows_kept": "rows kept, each an expression",
    "split_todo": "rows left out: split TODO, annotation never finished",
    "empty_text": "rows left out: no expression",
    "other_split": "rows left out: their split is none of train, val and test",
    "other_modality": "expressions left out: a sound or a picture stands in for some of their words",
    "without_sound": "clips without a sound file; they are read as silent",
    "repeated_uids": "rows that repeat the uid of an earlier row; all kept, so a uid does not identify a row",
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
    "distinct_texts_normalised": "distinct expressions, ignoring case and white space",
    "longest_text_words": "words of the longest expression",
    "total_text_words": "words of all expressions",
    "null_texts": "distinct expressions of test_n; if few other rows have them, the text alone identifies nulls",
    "null_text_rows_train_null": "null train rows with an expression of test_n",
    "null_text_rows_train_object": "train rows with an expression of test_n that do refer to an object",
    "null_text_rows_test_object": "test_s and test_u rows with an expression of test_n",
    "null_vids_of_test_s": "vids of test_n that also occur in test_s",
    "null_vids_of_train": "vids of null train rows that also occur in other train rows",
    "vids_across_splits": "vids in more than one of train, val and test",
    "unseen_objects": "object names of test_u",
    "unseen_objects_absent_from_train": "object names of test_u that do not occur in train",
    "unseen_objects_in_train": "object names of test_u that also occur in train, so not unseen",
    "missing_media": "clips left out with their expressions: their media was not found",
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


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """Peculiarities of a source: for each kind its count, and the rows or names concerned.

    Row numbers count from 0 after the header of the CSV.

    Attributes:
        source: the file or folder.
        splits: splits that have their own counts, e.g. `rows_train`.
    """

    source: str = ""
    splits: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def note_rows(self, kind: str, rows: Iterable[int]) -> None:
        """Records the rows of one kind."""
        self.rows[kind] = [int(row) for row in rows]
        self.counts[kind] = len(self.rows[kind])

    def note_names(self, kind: str, names: Iterable[str]) -> None:
        """Records the clips, uids, objects or expressions of one kind."""
        self.names[kind] = sorted(names)
        self.counts[kind] = len(self.names[kind])

    def lines(self, num_examples: int = 3) -> list[str]:
        """The report as lines: each kind found with its count, meaning and first rows or names; then the splits."""
        lines = [self.source]
        unknown = {kind: "" for kind in (*self.rows, *self.names) if kind not in _KINDS}  # from plug-ins
        for kind, meaning in {**_KINDS, **unknown}.items():
            if not self.counts.get(kind):
                continue
            rows, names = self.rows.get(kind, []), self.names.get(kind, [])
            examples = [f"row {row}" for row in rows] + [repr(name) for name in names]
            shown = ", ".join(examples[:num_examples]) + (", ..." if len(examples) > num_examples else "")
            lines.append(f"{self.counts[kind]:>8,}  {kind}: {meaning}" + (f" [{shown}]" if shown else ""))
        for split in self.splits:
            found = {kind: self.counts.get(f"{kind}_{split.lower()}", 0) for kind in _PER_SPLIT}
            if any(found.values()):
                numbers = ", ".join(f"{count:,} {_PER_SPLIT[kind]}" for kind, count in found.items() if count)
                lines.append(f"{split}: {numbers}")
        return lines
