"""The layout of Ref-AVS Bench, which `refavs-synth` writes as well."""

import os
from pathlib import Path

import pandas as pd

from refavs.data.cues import parse
from refavs.data.layouts.avss import Avss
from refavs.data.layouts.protocol import EXPRESSION_COLUMNS, Clip, Layout, Object, Source
from refavs.data.layouts.ref_avs_metadata import NULL_PREFIX, SPLITS, read_metadata
from refavs.data.layouts.report import SourceReport
from refavs.errors import DatasetError
from refavs.files.source_files import reason_of
from refavs.files.tables import composed, is_plain_path, named_on_disk, read_rows

SECONDS = range(10)


class RefAvsBench(Layout):
    """`metadata.csv`, `media/<id>/{frames/{0..9}.jpg,audio.wav}`, `gt_mask/<id>/fid_<fid>/0000{0..9}.png`."""

    accepts = "a benchmark folder (metadata.csv, media/<id>/frames/{0..9}.jpg, media/<id>/audio.wav, gt_mask/)"

    def detect(self, root: Path) -> bool:
        """Whether an entry called metadata.csv exists, of any type, and the folder is not that of AVSS."""
        return os.path.lexists(root / "metadata.csv") and not Avss().detect(root)

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads the table; the report names missing clips and mask folders.

        An optional `expressions.csv` beside metadata.csv (`uid,grade,dimension`, more columns allowed) states the cues
        that an expression needs. The real benchmark has none; `refavs.data.cues` then derives them from the words.

        Raises:
            DatasetError: metadata.csv cannot be read, none of its clips has media, or `expressions` are given.
        """
        if expressions is not None:
            raise DatasetError(f"{root} is a benchmark with its expressions in metadata.csv; leave out the CSV "
                               f"{expressions}.")
        table, report = read_metadata(root / "metadata.csv")
        media = root / "media"
        wanted = sorted(set(table["media_id"]))
        on_disk = _folders(media, required=True)
        present = on_disk.keys() & set(wanted)
        report.note_names("missing_media", set(wanted) - present)
        if not present:
            raise DatasetError(
                f"{root}: none of the {len(wanted)} clips of metadata.csv has a folder under {media}; expected "
                "media/<id>/frames/{0..9}.jpg and media/<id>/audio.wav. Unpack the benchmark's media there."
            )
        table = table.loc[table["media_id"].isin(sorted(present))].rename(columns={"media_id": "clip_id"})
        named = list(zip(table["clip_id"], table["fid"], strict=True))
        objects = _objects(root / "gt_mask", set(named), report)
        grades, dimensions = _cues(root / "expressions.csv", table)
        table = table.assign(
            fid=[fid if (clip_id, fid) in objects else -1 for clip_id, fid in named],
            grade=pd.Series(grades, table.index, "str"), dimension=pd.Series(dimensions, table.index, "str"),
            null=table["clip_id"].str.startswith(NULL_PREFIX),
        )
        return Source(
            root=root, clips=tuple(_clip(name, media / on_disk[name], media) for name in sorted(present)),
            objects=tuple(objects.values()), splits=SPLITS, report=report,
            expressions=table[list(EXPRESSION_COLUMNS)].reset_index(drop=True),
        )

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip by its id alone."""
        media = root / "media"
        if "/" in clip_id or not is_plain_path(clip_id):
            return None
        folder = named_on_disk(media, clip_id)
        return _clip(clip_id, folder, media) if os.path.isdir(folder) else None


def _clip(name: str, folder: Path, media: Path) -> Clip:
    frames = tuple(folder / "frames" / f"{second}.jpg" for second in SECONDS)
    return Clip(id=name, frames=frames, audio=folder / "audio.wav", root=media)


def _folders(path: Path, required: bool = False) -> dict[str, str]:
    """Names of the folders in `path` as they are on disk, by the name in composed Unicode form.

    Empty if `path` cannot be listed, unless it is required and exists.
    """
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if os.path.isdir(entry))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        if not required:
            return {}
        raise DatasetError(f"{path} cannot be read ({reason_of(error)}); change its permissions.") from error
    found: dict[str, str] = {}
    for name in names:
        if composed(name) in found:
            raise DatasetError(f"{path} has two folders {composed(name)!r}, in composed and in decomposed Unicode; "
                               "rename one of them, or merge them.")
        found[composed(name)] = name
    return found


def _objects(root: Path, named: set[tuple[str, int]], report: SourceReport) -> dict[tuple[str, int], Object]:
    """The objects with a folder of masks, and the null objects, which need none."""
    on_disk = _folders(root)
    folder_of = {clip_id: root / on_disk.get(clip_id, clip_id) for clip_id, _ in named}
    present = {clip_id: _folders(folder) for clip_id, folder in folder_of.items()}
    bare = {(c, fid) for c, fid in named if f"fid_{fid}" not in present[c]}
    nulls = {(c, fid) for c, fid in bare if c.startswith(NULL_PREFIX)}
    report.note_names("missing_masks", (f"{c}/fid_{fid}" for c, fid in bare - nulls))
    report.note_names("null_masks_not_shipped", (f"{c}/fid_{fid}" for c, fid in nulls))
    found = {}
    for clip_id, fid in sorted(named - (bare - nulls)):
        folder, null = folder_of[clip_id] / f"fid_{fid}", clip_id.startswith(NULL_PREFIX)
        masks = {second: folder / f"{second:05d}.png" for second in SECONDS if (clip_id, fid) not in bare}
        if null:
            masks = {second: path for second, path in masks.items() if path.exists()}
        found[clip_id, fid] = Object(clip_id=clip_id, fid=fid, masks=masks, null=null, root=root)
    return found


def _cues(path: Path, table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Grade and dimension of each row, from the file if it exists, else from the text; empty if unknown."""
    if os.path.lexists(path):
        rows = read_rows(path, ("uid", "grade", "dimension"))
        by_uid = {composed(uid): (grade, dimension) for uid, grade, dimension in rows}
        found = [by_uid.get(composed(uid), ("", "")) for uid in table["uid"]]
    else:
        parsed = {text: parse(text) for text in set(table["text"])}
        cues = {text: (str(found.grade or ""), found.dimension or "") for text, found in parsed.items()}
        found = [cues[text] for text in table["text"]]
    return [grade for grade, _ in found], [dimension for _, dimension in found]
