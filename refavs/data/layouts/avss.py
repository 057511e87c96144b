"""The layout of AVSBench-semantic (AVSS), read as binary: every pixel of a class is the object that sounds.

Clips of v1s and v1m have 5 seconds, those of v2 10. Training clips of v1s have only the first labelled.
"""

import os
from pathlib import Path

from refavs.data.layouts.protocol import Clip, Layout, Source
from refavs.data.layouts.sounding import SoundingClip, sounding_source
from refavs.errors import DatasetError
from refavs.files.tables import is_plain_path, plain_name, read_rows

SECONDS = {"v1s": 5, "v1m": 5, "v2": 10}


class Avss(Layout):
    """`metadata.csv` (uid,split,label,...) and `{v1s,v1m,v2}/UID/{frames/*.jpg,labels_rgb/*.png,audio.wav}`."""

    accepts = "AVSS (metadata.csv, {v1s,v1m,v2}/<uid>/ with frames/, labels_rgb/ and audio.wav)"

    def detect(self, root: Path) -> bool:
        """Whether there is a metadata.csv, which Ref-AVS Bench has as well, and a folder of a subset."""
        return os.path.lexists(root / "metadata.csv") and any((root / subset).is_dir() for subset in SECONDS)

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        """Reads the table.

        Raises:
            DatasetError: the table cannot be read, a label is none of v1s, v1m and v2, or as for `sounding_source`.
        """
        where = str(root / "metadata.csv")
        rows = []
        for uid, split, subset in read_rows(root / "metadata.csv", ("uid", "split", "label")):
            if subset not in SECONDS:
                raise DatasetError(f"{where}: {uid!r} has the label {subset!r}; accepted: {', '.join(SECONDS)}.")
            rows.append(_row(root, subset, plain_name(uid, where), split))
        return sounding_source(root, rows, expressions)

    def clip(self, root: Path, clip_id: str) -> Clip | None:
        """Finds a clip by its id, `SUBSET/UID`."""
        subset, _, uid = clip_id.partition("/")
        if subset not in SECONDS or "/" in uid or not is_plain_path(clip_id):
            return None
        found = _row(root, subset, uid, "test").clip
        return found if found.frames[0].parent.is_dir() else None


def _row(root: Path, subset: str, uid: str, split: str) -> SoundingClip:
    folder, seconds = root / subset / uid, range(SECONDS[subset])
    labelled = seconds[:1] if (subset, split) == ("v1s", "train") else seconds
    return SoundingClip(
        clip=Clip(id=f"{subset}/{uid}", frames=tuple(folder / "frames" / f"{second}.jpg" for second in seconds),
                  audio=folder / "audio.wav", root=root),
        split=split, masks={second: folder / "labels_rgb" / f"{second}.png" for second in labelled},
    )  # fmt: skip
