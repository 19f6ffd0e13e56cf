"""Files that are never half written, and locks that end with their process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Lock", "locked", "remove_partial_files", "replace_file"]


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one piece: whoever reads it sees the old content or the new.

    Args:
        path: The file; its folder is made.
        content: All of it.

    Raises:
        OSError: If it cannot be written, such as on a full disk; names it, and leaves the old one.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # writing names no file
    finally:
        with contextlib.suppress(OSError):  # a read-only disk refuses even what is not there
            partial.unlink(missing_ok=True)


def remove_partial_files(folder: Path, prefix: str) -> None:
    """Remove what processes left that were killed while they wrote.

    Args:
        folder: Where to look.
        prefix: Of the names of the whole files. Whoever writes such a file must be locked out.
    """
    for partial in folder.glob(f".{prefix}*"):
        if partial.suffix[1:].isdecimal():  # the id of a process, see `replace_file`
            partial.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Wait until no other process holds a folder.

    Args:
        folder: It must be there.

    Yields:
        Whether others are locked out. Windows and some network file systems have no such lock.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            excludes = True
        except OSError:
            excludes = False
        yield excludes
    finally:
        os.close(descriptor)


class Lock:
    """A file that one process at a time can hold; it is there meanwhile.

    Where there are no locks, as on Windows and some network file systems, everyone holds it.

    Args:
        path: The file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take it, unless another holds it.

        Returns:
            Whether it is held now.
        """
        if sys.platform == "win32":
            return True
        import fcntl

        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return False
            except OSError:
                os.close(descriptor)
                return True
            if self._is_there(descriptor):
                self._descriptor = descriptor
                return True
            os.close(descriptor)  # who held it before has removed the file meanwhile

    def release(self) -> None:
        """Give it back, and remove the file."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)  # first, so that none is removed that others hold
            os.close(self._descriptor)
            self._descriptor = None

    def _is_there(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False
