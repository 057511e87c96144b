"""A data set of 5-second films in which every other second is labelled."""

from pathlib import Path

from refavs.data.layouts.protocol import Clip, Layout, Object, Source, expression_table
from refavs.files.tables import read_rows


class Kitchen(Layout):
    """`list.csv` (film,split,expression), and for each film pictures, one object's masks by the second, and a sound."""

    accepts = "a folder with list.csv and FILM/frames/*.jpg, FILM/masks/*.png, FILM/sound.wav"

    def detect(self, root: Path) -> bool:
        return (root / "list.csv").is_file()

    def read(self, root: Path, expressions: Path | None = None) -> Source:
        rows = list(read_rows(root / "list.csv", ("film", "split", "expression")))
        films = sorted({film for film, _, _ in rows})
        return Source(
            root=root,
            clips=tuple(
                Clip(id=film, frames=tuple(sorted((root / film / "frames").glob("*.jpg"))),
                     audio=root / film / "sound.wav", root=root)
                for film in films
            ),
            objects=tuple(
                Object(clip_id=film, fid=0, root=root, masks={
                    int(path.stem): path for path in sorted((root / film / "masks").glob("*.png"))})
                for film in films
            ),
            expressions=expression_table(
                {"uid": f"{film}_{number}", "clip_id": film, "fid": 0, "split": split, "text": text}
                for number, (film, split, text) in enumerate(rows)
            ),
            splits={"fit": "train", "dev": "validation", "exam": "test"},
        )
