"""A stand-in for a worker, without slow imports, because each of its processes would repeat them."""

import os
import signal
from types import SimpleNamespace
from typing import Any

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

    def run(self, job: Any, condemned: dict[str, str]) -> SimpleNamespace:
        for name in job.names:
            if name not in condemned:
                self.probe(job, name)
        return SimpleNamespace(kind=job.kind, num_done=len(job.names) - len(condemned), failures=condemned)

    def probe(self, job: Any, key: str) -> None:
        if key == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if key == "burnt" or self.location == "burnt":
            from torch import AcceleratorError

            self.location = "burnt"
            raise AcceleratorError("CUDA error: unspecified launch failure")
