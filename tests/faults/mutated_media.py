"""Reads mutated videos one after another and prints what became of each as JSON: SEED COUNT FOLDER as arguments."""

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from refavs.data.layouts import Clip
from refavs.errors import DatasetError
from tests.extract import film_variants
from tests.extract.one_form import read_media

NUM_FILMS = 12
_WORDS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"\0\0\0\1")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with one kind of damage: bits, bytes, numbers, a piece gone, emptied, twice, or the end cut off."""
    data, place = bytearray(content), rng.randrange(len(content))
    kind = rng.choice(("bit", "bytes", "cut", "emptied", "twice", "gone", "head", "number", "number at the end"))
    length = rng.randrange(1, 20_000)
    if kind == "bit":
        data[place] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.randrange(2, 200)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "cut":
        del data[max(place, 1) :]
    elif kind == "emptied":
        data[place : place + length] = bytes(len(data[place : place + length]))
    elif kind == "twice":
        data[place:place] = data[place : place + length]
    elif kind == "gone":
        del data[max(place, 1) : place + length]
    elif kind == "head":
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(min(len(data), 2000))] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
    else:
        if kind.endswith("end"):
            place = len(data) - 8 - rng.randrange(min(len(data) - 8, 4000))
        data[place : place + 4] = rng.choice(_WORDS)
    return bytes(data)


def main(seed: int, count: int, folder: Path) -> None:
    rng = random.Random(seed)
    films = []
    for number, name in enumerate(rng.sample(sorted(film_variants.VARIANTS), NUM_FILMS)):
        variant = film_variants.VARIANTS[name]
        films.append(folder / f"{number}{variant.suffix}")
        variant.build(films[-1])
    verdicts: Counter[str] = Counter()
    slowest = 0.0
    for _ in range(count):
        film = rng.choice(films)
        path = folder / f"mutant{film.suffix}"
        path.write_bytes(mutated(film.read_bytes(), rng))
        started = time.process_time()
        try:
            media = read_media(Clip(id="x", video=path), 10, 96)
            odd = bool(media.notes) or media.repeated_from_s is not None
            verdicts["read and noted" if odd else "read"] += 1
        except DatasetError as error:
            assert "\n" not in str(error)
            verdicts["refused"] += 1
        slowest = max(slowest, time.process_time() - started)
    print(json.dumps({"verdicts": verdicts, "slowest_s": slowest}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
