"""A folder of results that is complete or recognisably incomplete: files are staged inside it, then renamed.

One file, the seal, lists the others. It is removed first and written last, so a folder with a seal is complete, and the
same command finishes a folder that a kill left without one. Foreign files in the folder stay.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from refavs.errors import ConfigError
from refavs.files.atomic import sync_folder
from refavs.files.locks import NO_LOCKS
from refavs.files.partials import PARTIAL

STAGING, BEFORE = f".refavs{PARTIAL}", "before"


def is_half_written(out: Path) -> bool:
    """Whether `staged` was killed while it wrote into the folder."""
    return (out / STAGING).is_dir() and not (out / STAGING).is_symlink()


@contextlib.contextmanager
def staged(out: Path, seal: str, names_of: Callable[[Path], Iterable[str]] = lambda seal: ()) -> Iterator[Path]:
    """Yields a folder to write into; its files move to `out` at the end, or not at all after an error.

    Args:
        seal: name of the file that is written last.
        names_of: the files that a seal lists; old ones that the new seal does not list are removed.

    Raises:
        ConfigError: another process is writing into `out`, or a folder in it is a link.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    staging = out / STAGING
    try:
        with _alone(out):
            _clear(out, seal, names_of)
            staging.mkdir()
            try:
                yield staging
                _settle(out, seal, names_of)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    finally:
        if made:
            with contextlib.suppress(OSError):  # not empty
                out.rmdir()


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    file = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another command is writing into {out}; wait for it, or name another --out") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(file)


def _clear(out: Path, seal: str, names_of: Callable[[Path], Iterable[str]]) -> None:
    """Removes what a killed writer left, including files it had moved to `out` before it wrote the seal."""
    staging = out / STAGING
    if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
        raise ConfigError(f"{staging} is not a folder that refavs made; remove it, or name another --out")
    if is_half_written(out) and not (out / seal).exists():
        for name in {*names_of(staging / BEFORE), *names_of(staging / seal)}:
            _remove(out, name)
    shutil.rmtree(staging, ignore_errors=True)


def _settle(out: Path, seal: str, names_of: Callable[[Path], Iterable[str]]) -> None:
    staging = out / STAGING
    names = [path.relative_to(staging).as_posix() for path in sorted(staging.rglob("*")) if path.is_file()]
    for name in names:
        _refuse_links(out, name)
    if (out / seal).exists():
        os.replace(out / seal, staging / BEFORE)
    for name in set(names_of(staging / BEFORE)) - set(names):
        _remove(out, name)
    for name in (name for name in names if name != seal):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, out / name)
    os.replace(staging / seal, out / seal)
    sync_folder(out)


def _refuse_links(out: Path, name: str) -> None:
    for parent in PurePosixPath(name).parents:
        if parent.name and (out / parent).is_symlink():
            raise ConfigError(f"{out / parent} is a link, and results are not written through links; remove it, or "
                              "name another --out")  # fmt: skip


def _remove(out: Path, name: str) -> None:
    """Removes one of our files, and its folder if that is empty then."""
    _refuse_links(out, name)
    (out / name).unlink(missing_ok=True)
    if (out / name).parent != out:
        with contextlib.suppress(OSError):
            (out / name).parent.rmdir()
