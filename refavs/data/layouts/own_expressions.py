"""Reads the CSV of `--expressions`: sentences about clips of a source that contains none."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refavs.data.layouts.report import SourceReport
from refavs.errors import DatasetError
from refavs.files.tables import composed, read_rows


def own_expressions(path: Path, clip_of: Mapping[str, str], report: SourceReport) -> list[dict[str, Any]]:
    """Rows with `uid`, `clip_id` and `text` from a CSV with the columns `video,exp`.

    Rows about unknown videos and rows without text are left out and named in the report.

    Args:
        clip_of: the clip of each name that the column `video` may have, in composed Unicode form.

    Raises:
        DatasetError: no row is about a clip.
    """
    rows: list[dict[str, Any]] = []
    empty: list[int] = []
    missing: set[str] = set()
    counts: Counter[str] = Counter()
    num_given = 0
    for number, (video, text) in enumerate(read_rows(path, ("video", "exp"))):
        num_given += 1
        clip_id = clip_of.get(composed(video))
        if clip_id is None:
            missing.add(video)
        elif not text.strip():
            empty.append(number)
        else:
            rows.append({"uid": f"{clip_id}_expression_{counts[clip_id]}", "clip_id": clip_id, "text": text})
            counts[clip_id] += 1
    report.counts.update(rows_total=num_given, rows_kept=len(rows))
    report.note_rows("empty_text", empty)
    report.note_names("missing_media", missing)
    if not rows:
        clips = list(dict.fromkeys(clip_of.values()))
        raise DatasetError(
            f"{path}: none of its {num_given} rows is an expression about a video of the folder; accepted: columns "
            f"video,exp where video is one of {', '.join(clips[:3])}{', ...' if len(clips) > 3 else ''}."
        )
    return rows
