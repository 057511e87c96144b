"""The layouts of AVSBench's single-source (S4) and multi-source (MS3) subsets: 5 seconds, a mask of all that sounds.

Frame k is the last of 16 samples of its second, where Ref-AVS takes the first. The pickles of `audio_log_mel` are not
read: a pickle can run any code, and only one encoder takes such input.
"""

import os
from pathlib import Path
from typing import ClassVar

from refavs.data.layouts.protocol import Clip, Layout, Source
from refavs.data.layouts.sounding import SPLITS, SoundingClip, sounding_source
from refavs.files.tables import is_plain_path, plain_name, read_rows

SECONDS = 5


class AvsBench(Layout):
    """`SUBSET_meta_data.csv`, whose first column is the name of the clip, and `SUBSET_data/`.

    Attributes:
        subset: its name in those of files and folders.
        columns: of the parts of an id.
    """

    subset: ClassVar[str]
    columns: ClassVar[tuple[str | int, ...]]

    def detect(self, root: Path) -> bool:
        """Whether an entry with the name of the table exists, of any type."""
        return os.path.lexists(self._table(root))

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads the table.

        Raises:
            DatasetError: the table cannot be read, or as for `sounding_source`.
        """
        table = self._table(root)
        ids = ["/".join(plain_name(value, str(table)) for value in row) for row in read_rows(table, self.columns)]
        return sounding_source(root, (self._row(root, clip_id) for clip_id in ids), expressions)

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip by its id."""
        if clip_id.count("/") != len(self.columns) - 1 or not is_plain_path(clip_id):
            return None
        row = self._row(root, clip_id)
        return row.clip if row.split in SPLITS and row.clip.frames[0].parent.is_dir() else None

    def _table(self, root: Path) -> Path:
        return root / f"{self.subset}_meta_data.csv"

    def _row(self, root: Path, clip_id: str) -> SoundingClip:
        raise NotImplementedError


class AvsBenchS4(AvsBench):
    """`s4_data/{visual_frames,gt_masks,audio_wav}/SPLIT/CATEGORY/NAME...`; training clips have one labelled frame."""

    accepts = "AVSBench S4 (s4_meta_data.csv, s4_data/visual_frames/, s4_data/gt_masks/, s4_data/audio_wav/)"
    subset, columns = "s4", ("split", "category", 0)

    def _row(self, root: Path, clip_id: str) -> SoundingClip:
        data, (split, _, name) = root / "s4_data", clip_id.split("/")
        frames = tuple(data / "visual_frames" / clip_id / f"{name}_{number}.png" for number in range(1, SECONDS + 1))
        masks = {step: data / "gt_masks" / clip_id / frame.name for step, frame in enumerate(frames)}
        return SoundingClip(
            clip=Clip(id=clip_id, frames=frames, audio=data / "audio_wav" / f"{clip_id}.wav", root=root), split=split,
            masks={0: masks[0]} if split == "train" else masks,
        )  # fmt: skip


class AvsBenchMs3(AvsBench):
    """`ms3_data/visual_frames/NAME/` and `ms3_data/{gt_masks,audio_wav}/SPLIT/NAME...`; every frame is labelled."""

    accepts = "AVSBench MS3 (ms3_meta_data.csv, ms3_data/visual_frames/, ms3_data/gt_masks/, ms3_data/audio_wav/)"
    subset, columns = "ms3", ("split", 0)

    def _row(self, root: Path, clip_id: str) -> SoundingClip:
        data, (split, name) = root / "ms3_data", clip_id.split("/")
        frames = tuple(data / "visual_frames" / name / f"{name}.mp4_{number}.png" for number in range(1, SECONDS + 1))
        masks = {step: data / "gt_masks" / clip_id / f"{name}_{step + 1}.png" for step in range(SECONDS)}
        return SoundingClip(
            clip=Clip(id=clip_id, frames=frames, audio=data / "audio_wav" / f"{clip_id}.wav", root=root), split=split,
            masks=masks,
        )  # fmt: skip
