"""The store that an HDF5 file keeps, read without trust: nothing of it is used before it was compared."""

import re
from pathlib import Path
from typing import Any

import numpy as np

from refavs.errors import StoreError
from refavs.files.typed_json import read_json
from refavs.store.format.checksum import crc32c
from refavs.store.format.commits import CommitRecord, parse_record
from refavs.store.format.schema import StoreSchema
from refavs.store.hdf5.guarded_file import AGAIN, ForeignFile

VERSION = 1
ROOT = "zarr.json"
_TABLES = "clips|objects|text|expressions"
_SMALL = re.compile(
    rf"(({_TABLES})/([^/\0]+/)*)?zarr\.json|({_TABLES})/[^/\0]+/c(\.0){{1,2}}|commits/[a-z]+(-\d+)?\.json"
)
_RECORD = re.compile(r"commits/(clips|objects|text)-\d+\.json")


class KeptStore:
    """An export opened for reading; use it as a context manager.

    Attributes:
        names: the small files it keeps.
        attributes: of the root group.
        records: the commit records, by file.

    Raises:
        StoreError: the file is missing, damaged or no export.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = ForeignFile(path)
        try:
            self.fingerprint = self._about()
            self._places = self._small_places()
            self.names = list(self._places)
            self.attributes = self._attributes()
            where = f"the store in {path}"
            with self._file.refusing():
                self.schema = StoreSchema.from_attributes(self.attributes, where)
                self._refuse_names()
                self.records = {name: parse_record(self.read(name), name, self.schema, f"{name} in {path}")
                                for name in self.names if self.is_record(name)}  # fmt: skip
                self._refuse_claims()
            specs = self.schema.specs
            written = dict.fromkeys(array for record in self.records.values() for array in record.arrays)
            self._arrays = {array: self._file.rows(array, specs[array].shape, specs[array].dtype) for array in written}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "KeptStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @staticmethod
    def fingerprint_of(path: Path) -> str | None:
        """Fingerprint of the store in a file; None where that is no whole export."""
        try:
            with KeptStore(path) as kept:
                return kept.fingerprint
        except StoreError:
            return None

    @staticmethod
    def is_record(name: str) -> bool:
        """Whether a file of that name is the commit record of a shard."""
        return _RECORD.fullmatch(name) is not None

    def read(self, name: str) -> bytes:
        """A small file of the store.

        Raises:
            StoreError: there is none, or its checksum differs.
        """
        if name not in self._places:
            raise StoreError(f"{self.path} keeps no {name} of its store; export the store again")
        start, stop, crc = self._places[name]
        data = self._file.part("refavs/files/data", start, stop)
        if crc32c(data) != crc:
            raise StoreError(f"{name} in {self.path} is damaged: its checksum is {crc32c(data):08x}, the file says "
                             f"{crc:08x}; {AGAIN}")
        return data

    def order(self, record: CommitRecord, path: str) -> list[int]:
        """Places of a shard's rows in the order of its file."""
        places = sorted(record.arrays[path].rows)
        name = order_name(path, record.index)
        if self._file.dataset(name) is None:
            return places
        order = self._file.small(name, "int64").tolist()
        if sorted(order) != places:
            raise StoreError(f"{name} in {self.path} does not name the rows of its shard; export the store again")
        return order

    def row(self, path: str, place: int, row: np.ndarray) -> None:
        """Reads row `place` of an array into `row`."""
        self._file.row(self._arrays[path], place, row)

    def _about(self) -> str:
        data = self._file.small("refavs/about", "uint8").tobytes()
        with self._file.refusing():
            about = read_json(data)
            version, fingerprint = about["version"], str(about["fingerprint"])
        if version != VERSION:
            raise StoreError(f"{self.path} has exchange version {version!r}, this refavs reads {VERSION}; use the "
                             "refavs that wrote it")
        return fingerprint

    def _small_places(self) -> dict[str, tuple[int, int, int]]:
        """Where each small file starts and ends, and its checksum."""
        encoded = self._file.small("refavs/files/name", "S").tolist()
        ends = self._file.small("refavs/files/end", "int64").tolist()
        crcs = self._file.small("refavs/files/crc32c", "uint32").tolist()
        with self._file.refusing():
            names = [name.decode() for name in encoded]
            if len(set(names)) != len(names) or sorted(ends) != ends or min(ends, default=0) < 0:
                raise ValueError("refavs/files does not fit together")
            return dict(zip(names, zip([0, *ends], ends, crcs, strict=False), strict=True))

    def _attributes(self) -> dict[str, Any]:
        data = self.read(ROOT)
        with self._file.refusing():
            return dict(read_json(data)["attributes"])

    def _refuse_names(self) -> None:
        """Checks that the small files are such as a store has, and that none leads out of it."""
        for name in self.names:
            inside = not {"", ".", ".."} & set(name.split("/")) and "\\" not in name
            if not (inside and is_small(name, self.schema)):
                raise StoreError(f"{self.path} keeps a file {name!r}, which no store has; it was not exported by "
                                 "refavs-store, so it is not imported")

    def _refuse_claims(self) -> None:
        """Checks that no key comes twice and that the rows find room in the file, before anything is written."""
        keys = [(record.table, key) for record in self.records.values() for key in record.rows]
        if len(set(keys)) != len(keys):
            raise StoreError(f"{self.path} keeps commit records that hold the same key twice; it is not imported")
        specs = self.schema.specs
        num_bytes = sum(len(facts.rows) * specs[array].row_bytes for record in self.records.values()
                        for array, facts in record.arrays.items())  # fmt: skip
        if num_bytes > self._file.num_bytes:
            raise StoreError(f"{self.path} has {self._file.num_bytes} bytes, its commit records name {num_bytes} bytes "
                             "of rows; copy the file again, or export the store again")


def is_small(name: str, schema: StoreSchema) -> bool:
    """Whether a file of that name is one of the store, but no shard of an array."""
    parent, _, file = name.rpartition("/")
    return _SMALL.fullmatch(name) is not None and not (parent in schema.specs and file.startswith("c."))


def order_name(path: str, index: int) -> str:
    """The dataset that says in which order shard `index` of an array holds its rows."""
    return f"refavs/order/{path}/{index}"
