"""Stands for a worker, and imports nothing that takes time: each of its processes would import it again."""

import os
import signal
from types import SimpleNamespace

from refavs.errors import StoreError


class Mortal:
    """A worker that `poison` kills; `burnt` kills its GPU, and `early` as an argument itself before it is ready."""

    def __init__(self, location: str, *_: object) -> None:
        self.location = location

    def ready(self) -> str:
        if self.location == "early":
            os._exit(1)
        if self.location == "nowhere":
            raise StoreError("no store here")
        return f"{os.uname().nodename}:{os.getpid()}"

    def run(self, job: SimpleNamespace, condemned: dict[str, str]) -> SimpleNamespace:
        for key in job.shard.keys:
            if key not in condemned:
                self.probe(job, key)
        return SimpleNamespace(num_done=len(job.shard.keys) - len(condemned), failures=condemned)

    def probe(self, job: SimpleNamespace, key: str) -> None:
        if key == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if key == "burnt" or self.location == "burnt":
            from torch import AcceleratorError

            self.location = "burnt"
            raise AcceleratorError("CUDA error: unspecified launch failure")
