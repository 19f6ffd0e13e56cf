"""Files are whole or absent, errors name them, and a lock is one process's."""

import errno
import os
import subprocess
import sys

import pytest

from crest.lab.run.files import Lock, locked, remove_partial_files, replace_file


def fill_the_disk(monkeypatch):
    """Let every write fail as on a full disk: such an error names no file."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "new" / "file"
    replace_file(path, b"old")
    fill_the_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left on device") as raised:
        replace_file(path, b"new")
    assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "folder").write_text("mine")
    with pytest.raises(OSError, match="folder"):
        replace_file(tmp_path / "folder" / "file", b"new")
    assert (tmp_path / "folder").read_text() == "mine"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    names = [".results.json.12", ".results.json.notes", "results.json.12", ".other.json.12"]
    for name in names:
        (tmp_path / name).touch()
    remove_partial_files(tmp_path, "results.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_one_at_a_time_holds_a_lock_and_its_file_goes(tmp_path):
    one, other = Lock(tmp_path / "new" / "lock"), Lock(tmp_path / "new" / "lock")
    assert one.take()
    assert not other.take()
    other.release()  # of what it does not hold
    assert not other.take()
    one.release()
    assert other.take()
    other.release()
    assert not list((tmp_path / "new").iterdir())


def test_a_lock_ends_with_its_process(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from crest.lab.run.files import Lock
assert Lock(Path({str(tmp_path)!r}) / "lock").take()
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (tmp_path / "lock").exists()
    assert Lock(tmp_path / "lock").take()


def test_without_locks_everything_is_written_nevertheless(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.EBADF, "as of a folder on a network file system")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with locked(tmp_path) as others_wait:
        assert not others_wait
    one, other = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert one.take()
    assert other.take()
