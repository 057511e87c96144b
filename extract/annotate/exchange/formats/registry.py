"""The formats of label tools by name."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from extract.annotate.exchange.formats import coco, cvat, label_studio
from extract.annotate.exchange.formats.drawn import DrawnFrame, Sizes

Objects = list[tuple[int, str]]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one tool exchanges masks.

    Attributes:
        file_name: of the masks in an exported folder.
        write: the file in pieces, from frames and the number of the export.
        read: the frames of a file.
        labels: name and content of the file that prepares the tool, from fids and names of all objects.
        export_of: the number of the export that a file comes from; None where the tool keeps none.
    """

    file_name: str
    write: Callable[[Iterable[DrawnFrame], int], Iterator[bytes]]
    read: Callable[[Path, Sizes], Iterator[DrawnFrame]]
    labels: Callable[[Objects], dict[str, bytes]] = lambda objects: {}
    export_of: Callable[[Path], int | None] = lambda path: None


FORMATS = {
    "cvat": Format(
        file_name="annotations.xml", write=cvat.write, read=cvat.read,
        labels=lambda objects: {"labels.json": cvat.labels(name for _, name in objects)},
    ),
    "coco": Format(file_name="annotations.json", write=coco.write, read=coco.read, export_of=coco.export_of),
    "label-studio": Format(
        file_name="tasks.json", write=label_studio.write, read=label_studio.read, export_of=label_studio.export_of,
        labels=lambda objects: {"interface.xml": label_studio.labels(objects)},
    ),
}  # fmt: skip
