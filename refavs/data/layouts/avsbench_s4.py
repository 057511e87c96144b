"""The layout of AVSBench's single-source subset (S4): 5 seconds, of which training clips have only the first labelled.

Frame k is the last of 16 samples of its second, where Ref-AVS takes the first.
"""

import os
from pathlib import Path

from refavs.data.layouts.protocol import Clip, Layout, Source
from refavs.data.layouts.sounding import SoundingClip, sounding_source
from refavs.files.tables import is_plain_path, plain_name, read_rows

TABLE, SECONDS = "s4_meta_data.csv", 5


class AvsBenchS4(Layout):
    """`s4_meta_data.csv` and `s4_data/{visual_frames,gt_masks,audio_wav}/SPLIT/CATEGORY/NAME...`.

    The pickles of `audio_log_mel` are not read: a pickle can run any code, and only one encoder takes such input.
    """

    accepts = "AVSBench S4 (s4_meta_data.csv, s4_data/visual_frames/, s4_data/gt_masks/, s4_data/audio_wav/)"

    def detect(self, root: Path) -> bool:
        """Whether an entry called s4_meta_data.csv exists, of any type."""
        return os.path.lexists(root / TABLE)

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads the table, whose first column is the name of the clip.

        Raises:
            DatasetError: the table cannot be read, or as for `sounding_source`.
        """
        where = str(root / TABLE)
        rows = [tuple(plain_name(value, where) for value in row)
                for row in read_rows(root / TABLE, (0, "category", "split"))]  # fmt: skip
        return sounding_source(root, (_row(root, f"{split}/{kind}/{name}") for name, kind, split in rows), expressions)

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip by its id, `SPLIT/CATEGORY/NAME`."""
        if clip_id.count("/") != 2 or not is_plain_path(clip_id):
            return None
        found = _row(root, clip_id).clip
        return found if found.frames[0].parent.is_dir() else None


def _row(root: Path, clip_id: str) -> SoundingClip:
    data, (split, _, name) = root / "s4_data", clip_id.split("/")
    labelled = range(1 if split == "train" else SECONDS)
    return SoundingClip(
        clip=Clip(
            id=clip_id, audio=data / "audio_wav" / f"{clip_id}.wav", root=root,
            frames=tuple(data / "visual_frames" / clip_id / f"{name}_{second + 1}.png" for second in range(SECONDS)),
        ),
        split=split,
        masks={second: data / "gt_masks" / clip_id / f"{name}_{second + 1}.png" for second in labelled},
    )  # fmt: skip
