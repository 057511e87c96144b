"""The layout of AVSBench's multi-source subset (MS3): 5 labelled seconds; the mask is the union of what sounds."""

import os
from pathlib import Path

from refavs.data.layouts.protocol import Clip, Layout, Source
from refavs.data.layouts.sounding import SPLITS, SoundingClip, sounding_source
from refavs.files.tables import is_plain_path, plain_name, read_rows

TABLE, SECONDS = "ms3_meta_data.csv", 5


class AvsBenchMs3(Layout):
    """`ms3_meta_data.csv`, `ms3_data/visual_frames/NAME/` and `ms3_data/{gt_masks,audio_wav}/SPLIT/NAME...`.

    As in S4, the pickles of `audio_log_mel` are not read.
    """

    accepts = "AVSBench MS3 (ms3_meta_data.csv, ms3_data/visual_frames/, ms3_data/gt_masks/, ms3_data/audio_wav/)"

    def detect(self, root: Path) -> bool:
        """Whether an entry called ms3_meta_data.csv exists, of any type."""
        return os.path.lexists(root / TABLE)

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads the table, whose first column is the name of the clip.

        Raises:
            DatasetError: the table cannot be read, or as for `sounding_source`.
        """
        where = str(root / TABLE)
        rows = [tuple(plain_name(value, where) for value in row) for row in read_rows(root / TABLE, (0, "split"))]
        return sounding_source(root, (_row(root, f"{split}/{name}") for name, split in rows), expressions)

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip by its id, `SPLIT/NAME`."""
        if clip_id.count("/") != 1 or not is_plain_path(clip_id) or clip_id.split("/")[0] not in SPLITS:
            return None
        found = _row(root, clip_id).clip
        return found if found.frames[0].parent.is_dir() else None


def _row(root: Path, clip_id: str) -> SoundingClip:
    data, (split, name) = root / "ms3_data", clip_id.split("/")
    frames = data / "visual_frames" / name
    return SoundingClip(
        clip=Clip(
            id=clip_id, audio=data / "audio_wav" / f"{clip_id}.wav", root=root,
            frames=tuple(frames / f"{name}.mp4_{second + 1}.png" for second in range(SECONDS)),
        ),
        split=split,
        masks={second: data / "gt_masks" / clip_id / f"{name}_{second + 1}.png" for second in range(SECONDS)},
    )  # fmt: skip
