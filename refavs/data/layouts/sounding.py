"""What the AVSBench layouts share. They label everything that sounds as one object, and contain no expressions.

Every clip has the sentence `SENTENCE`, or those of a CSV given as `--expressions`. To train without text instead, set
`model.text` to false.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from refavs.choices import Role
from refavs.data.layouts.own_expressions import own_expressions
from refavs.data.layouts.protocol import Clip, Object, Source, expression_table
from refavs.data.layouts.report import SourceReport
from refavs.errors import DatasetError
from refavs.files.tables import composed

SENTENCE = "the sounding object"
SPLITS: dict[str, Role] = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class SoundingClip:
    """One row of the table of a data set.

    Attributes:
        masks: the mask of each labelled frame.
    """

    clip: Clip
    split: str
    masks: Mapping[int, Path]


def sounding_source(root: Path, rows: Iterable[SoundingClip], expressions: Path | None = None) -> Source:
    """The source of a data set; the report names clips without media, sound or masks, and rows of other splits.

    Raises:
        DatasetError: no clip has a folder of frames, two rows have the same clip, or `expressions` are about none.
    """
    report = SourceReport(source=str(root))
    listed = list(rows)
    known = [row for row in listed if row.split in SPLITS]
    found: dict[str, SoundingClip] = {}
    for row in known:
        if found.setdefault(row.clip.id, row) is not row:
            raise DatasetError(f"{root}: two rows of the table are about the clip {row.clip.id!r}; remove one of them.")
    present = {name: found[name] for name in sorted(found) if found[name].clip.frames[0].parent.is_dir()}
    if not present:
        example = f", e.g. {known[0].clip.frames[0].parent}" if known else ""
        raise DatasetError(f"{root}: none of the {len(found)} clips of the table has a folder of frames{example}; "
                           "unpack the frames there.")
    labelled = {name for name, row in present.items() if next(iter(row.masks.values())).parent.is_dir()}
    report.counts.update(rows_total=len(listed), rows_kept=len(present))
    report.note_names("other_split", {row.clip.id for row in listed} - found.keys())
    report.note_names("missing_media", found.keys() - present)
    report.note_names("missing_masks", present.keys() - labelled)
    report.note_names("without_sound", (name for name, row in present.items()
                                        if row.clip.audio is None or not row.clip.audio.exists()))  # fmt: skip
    texts = [{"uid": f"{name}_0", "clip_id": name, "text": SENTENCE} for name in present]
    if expressions is not None:
        last = {composed(name.rsplit("/", 1)[-1]): name for name in present}
        texts = own_expressions(expressions, {**last, **{name: name for name in present}}, report)
    return Source(
        root=root, clips=tuple(row.clip for row in present.values()), splits=SPLITS, report=report,
        objects=tuple(Object(clip_id=name, fid=0, masks=present[name].masks, root=root) for name in sorted(labelled)),
        expressions=expression_table(
            {**text, "split": present[text["clip_id"]].split, "fid": 0 if text["clip_id"] in labelled else -1}
            for text in texts
        ),
    )  # fmt: skip
