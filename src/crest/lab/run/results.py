"""Records of finished runs in a JSON file that is never half written."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from typing import Any

from crest.lab.run.files import locked, remove_partial_files, replace_file
from crest.strategies import Full
from crest.strategies.registry import word_of

__all__ = ["Results"]

_FULL = word_of(Full)

_KEYS = {
    *("strategy", "seed", "equal_time", "settings", "steps", "accuracy", "accuracy_gap"),
    *("seconds", "cost", "overhead", "curve"),
}

# What settings were before records told of them.
_UNTOLD = {"optimizer": "sgd"}

# Runs that differ in these alone are compared with the same full run.
_STRATEGY_KEYS = ("strategy", "strategy_settings", "budget", "num_steps")


class Results:
    """A JSON list of records, one line each, kept in step with a file.

    Earlier records may stand in a second file, PATH.xz: such a list, compressed. It is read and
    never written; the record of a run that was trained again counts in place of the one there.

    Attributes:
        path: The file.
        records: One dict for each finished run, see `lab.run.training.train`; with
            `accuracy_gap`, |accuracy - a| / a as a fraction for the accuracy a of the full run
            with the same seed and settings, None while there is none. Those of PATH.xz come first.

    Args:
        path: The file; it may not exist yet.

    Raises:
        ValueError: If one of the files is there but holds something else; it is left as it is.

    Example:
        >>> Results("no/such/results.json").records
        []
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._compressed = self.path.with_name(f"{self.path.name}.xz")
        self._seen = self._signature()
        self.records = self._read()

    def read_again(self) -> None:
        """Take in what others wrote, if they did."""
        now = self._signature()
        if now != self._seen:
            self._seen, self.records = now, self._read()

    def find(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Look up a finished run.

        Records of an older version lack newer fields: one that is None is as good as none.

        Args:
            settings: As in the record.

        Returns:
            The record, or None.
        """
        wanted = _told(settings)
        return next((some for some in self.records if _told(some["settings"]) == wanted), None)

    def add(self, record: dict[str, Any]) -> dict[str, Any]:
        """Write a record to the file, beside what others wrote there meanwhile.

        Args:
            record: Primitives only; an older record of the same settings goes.

        Returns:
            The record as the file gives it back.

        Raises:
            OSError: If it cannot be written, such as on a full disk; the old file stays.
            ValueError: If the file holds something else by now.
        """
        plain: dict[str, Any] = json.loads(json.dumps(_finite(record), allow_nan=False))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.path.parent) as others_wait:
            self._replace(plain)
            if others_wait:
                remove_partial_files(self.path.parent, self.path.name)
        return plain

    def _replace(self, plain: dict[str, Any]) -> None:
        settings = _told(plain["settings"])
        others = [
            other for other in self._read_file(self.path) if _told(other["settings"]) != settings
        ]
        added = [*others, plain]
        self.records = _join(self._read_file(self._compressed), added)
        lines = ",\n".join(json.dumps(record) for record in added)
        replace_file(self.path, f"[\n{lines}\n]\n".encode())
        self._seen = self._signature()

    def _signature(self) -> tuple[int, ...] | None:
        """Tell one content of the file from another, as it is never changed in place."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> list[dict[str, Any]]:
        return _join(self._read_file(self._compressed), self._read_file(self.path))

    def _read_file(self, path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        content = path.read_bytes()
        try:
            if path == self._compressed:
                content = lzma.decompress(content)
            records = json.loads(content.decode("utf-8"))
        except lzma.LZMAError as error:
            raise ValueError(_complaint(path, f"it cannot be decompressed: {error}")) from error
        except ValueError as error:
            raise ValueError(_complaint(path, f"it is no JSON: {error}")) from error
        if not isinstance(records, list):
            raise ValueError(_complaint(path, f"it is a {type(records).__name__}"))
        for number, record in enumerate(records):
            missing = _KEYS - record.keys() if isinstance(record, dict) else _KEYS
            if missing:
                raise ValueError(
                    _complaint(path, f"entry {number} lacks {', '.join(sorted(missing))}")
                )
        return records


def _complaint(path: Path, reason: str) -> str:
    return (
        f"{path} must be a list of finished runs; {reason}. It was left as it is: "
        "move it away, or name another folder with --out."
    )


def _join(compressed: list[dict[str, Any]], added: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put records together, and give each its gap: a full run gives earlier ones theirs, too."""
    again = [_told(record["settings"]) for record in added]
    records = [*(record for record in compressed if _told(record["settings"]) not in again), *added]
    _set_gaps(records)
    return records


def _set_gaps(records: list[dict[str, Any]]) -> None:
    full = {
        _task_key(record): record["accuracy"] for record in records if record["strategy"] == _FULL
    }
    for record in records:
        accuracy = full.get(_task_key(record))
        record["accuracy_gap"] = abs(record["accuracy"] - accuracy) / accuracy if accuracy else None


def _task_key(record: dict[str, Any]) -> str:
    settings = _told(record["settings"]).items()
    return json.dumps({k: v for k, v in settings if k not in _STRATEGY_KEYS}, sort_keys=True)


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """Bring settings of any version to one form."""
    return _given(_UNTOLD | settings)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None."""
    return {
        name: _given(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if value is not None
    }


def _finite(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not know, by None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
