"""Takes the features of a video from a store instead of computing them, and adds videos to a store."""

import json
from pathlib import Path

import numpy as np
import torch

from experiments.predict.trained_run import TrainedRun
from extract.pipeline.content import contents_of
from extract.pipeline.input_check import check_films
from extract.pipeline.plan import plan_jobs, wanted_units
from extract.pipeline.tables import refuse_replaced, write_tables
from extract.pipeline.worker import Worker
from refavs.data.layouts import Clip, Source
from refavs.errors import DatasetError, StoreError
from refavs.store.format.quantised import values_of
from refavs.store.lease import Lease
from refavs.store.reader import FeatureStore
from refavs.store.writer import StoreWriter


class StoredFeatures:
    """The features of a run's encoders in a store.

    Raises:
        StoreError: there is no store, or it has the features of other encoders, or clips of another length.
    """

    def __init__(self, location: str, run: TrainedRun) -> None:
        self._location, self._run = location, run
        self._store = FeatureStore(location)
        self._streams = run.streams.only(list(run.streams.of("visual", "audio")))
        found = self._store.schema.streams
        other = [id for id, stream in self._streams.streams.items()
                 if id not in found or found[id].fingerprint != json.loads(json.dumps(run.streams.fingerprint(stream)))]
        steps = self._store.steps
        if other or steps != run.streams.steps:
            own = (f"clips of {steps.seconds} s" if steps.fps == run.streams.steps.fps
                   else f"clips of {steps.fps:g} frames per second")  # fmt: skip
            what = f"other or no features of {', '.join(other)}" if other else own
            raise StoreError(f"store {location} has {what} than those that the run was trained on; name the store of "
                             "the run, or leave out --store")  # fmt: skip

    def of(self, video: Path) -> dict[str, np.ndarray] | None:
        """The features of the first seconds of a video, by their paths; None if the store lacks some of them."""
        clip = self._clip(video)
        contents, _ = contents_of([clip], self._streams.steps)
        clips = self._store.clips
        if clip.id not in contents or clips.empty:
            return None
        same = np.flatnonzero(clips["frames"] == contents[clip.id].frames)
        paths = [size.path for size in self._run.model.sizes.maps]
        paths += [] if self._run.model.sizes.audio is None else [self._run.model.sizes.audio.path]
        if not len(same) or any(self._store.rows_of(self._store.specs[path].table)[same[0]] < 0 for path in paths):
            return None
        found = {path: self._store.rows(path, [int(same[0])]) for path in self._store.schema.with_scales(*paths)}
        rows = self._store.read_rows(found, lambda shape, dtype: torch.empty(shape, dtype=dtype))
        return {path: values_of(self._store.specs[path], rows)[0].numpy() for path in paths}

    def add(self, video: Path) -> None:
        """Computes the features of the first seconds of a video into the store.

        Raises:
            DatasetError: the video cannot be read.
            StoreError: another process writes into the store, it has another video under this name, or its videos
                were read by other rules.
        """
        source = Source(root=video.parent, clips=(self._clip(video),))
        writer = StoreWriter.attach(self._location)
        with Lease(writer.folder, "refavs-predict") as lease:
            contents, unreadable = contents_of(source.clips, self._streams.steps)
            if unreadable:
                raise DatasetError(next(iter(unreadable.values())))
            check_films(writer.folder, source)
            refuse_replaced(writer, contents)
            worker = Worker(self._location, self._streams, torch.get_num_threads())
            for job in plan_jobs(writer, wanted_units(source, self._streams, contents)):
                result = worker.run(job)
                if result.error or result.failures:
                    raise DatasetError(f"{video} was not added to {self._location}: {result.error or result.failures}")
            lease.check()
            write_tables(writer, source, contents, with_expressions=False)
            writer.finalise()
        self._store = FeatureStore(self._location)

    @staticmethod
    def _clip(video: Path) -> Clip:
        return Clip(id=video.stem, video=video.absolute())
