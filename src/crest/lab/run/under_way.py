"""What runs keep beside their results while they are trained, and which process trains them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crest.lab.run.files import Lock, remove_partial_files
from crest.lab.run.interrupts import Interrupts

__all__ = ["UnderWay", "stopped_runs"]


class UnderWay:
    """The files of one run.

    Args:
        results: File of the results that the run shall be kept in.
        key: What makes it the same run, `RunSettings.to_record`.
    """

    def __init__(self, results: Path, key: Mapping[str, Any]) -> None:
        self._folder = _folder(results)
        self._key = key
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self._name = digest[:16]

    def checkpoint(self, diagnostics: Sequence[str]) -> tuple[Path, str]:
        """Tell where the run is saved.

        Args:
            diagnostics: What the run measures; with others it is another file, as what was not
                measured so far cannot be measured later.

        Returns:
            The file, and words that tell the run from all others.
        """
        file = self._folder / f"{'-'.join([self._name, *diagnostics])}.pt"
        return file, json.dumps([self._key, list(diagnostics)], sort_keys=True)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep other processes from training the run, and sweep up behind one that was killed.

        Yields:
            Whether no other process trains it.
        """
        lock = Lock(self._folder / f"{self._name}.lock")
        try:
            with Interrupts():  # none between the file and what removes it
                is_taken = lock.take()
            if is_taken:
                remove_partial_files(self._folder, self._name)
            yield is_taken
        finally:
            lock.release()

    def clear(self, diagnostics: Collection[str]) -> None:
        """Remove what a process left that was killed once the record was kept.

        Args:
            diagnostics: What the record has; a run that measures others may still go on.
        """
        done = [
            file
            for file in self._folder.glob(f"{self._name}*")
            if set(file.stem.split("-")[1:]) <= set(diagnostics)
        ]
        if not done:
            return
        with self.alone() as is_alone:
            for file in done if is_alone else ():
                if file.suffix == ".pt":
                    file.unlink(missing_ok=True)


def stopped_runs(results: Path) -> list[Path]:
    """List the runs that were stopped and not finished.

    Args:
        results: File of the results that they shall be kept in.

    Returns:
        Their checkpoints, but for those of runs that a process trains now.
    """
    found = []
    for file in sorted(_folder(results).glob("*.pt")):
        path = file.with_name(f"{file.stem.split('-')[0]}.lock")
        lock = Lock(path)
        if not path.exists() or lock.take():
            lock.release()
            found.append(file)
    return found


def _folder(results: Path) -> Path:
    return results.parent / "under-way"
