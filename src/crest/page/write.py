"""Writes the page and its record, and reads records again."""

from __future__ import annotations

import datetime
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["PAGE_NAME", "RECORD_NAME", "read_run", "write_page", "write_record"]

PAGE_NAME, RECORD_NAME = "report.html", "report.json"
_FORMAT, _VERSION = "crest-report", 1
_HERE = Path(__file__).parent
_KEYS = {"name", "verdict", "settings", "numbers"}


def write_record(run: dict[str, Any], folder: Path) -> Path:
    """Write what a page says of a run, for `crest report` to read again.

    Args:
        run: See `facts.run_facts`.
        folder: It is made.

    Returns:
        The file.
    """
    content = {"format": _FORMAT, "version": _VERSION, "run": run}
    return _replace(folder / RECORD_NAME, _as_json(content))


def write_page(runs: Sequence[dict[str, Any]], verdict: str, path: Path) -> Path:
    """Write one page that needs no network and no other file.

    Whatever a run holds is data to the page: no text of it is read as HTML.

    Args:
        runs: See `facts.run_facts`.
        verdict: The first line.
        path: The file; its folder is made.

    Returns:
        The file.
    """
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    data = _as_json({"created": now, "verdict": verdict, "runs": list(runs)})
    # Within a script "</script" and "<!--" would end or change it.
    data = data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    page = (_HERE / "page.html").read_text(encoding="utf-8")
    for name, content in (
        ("page.css", (_HERE / "page.css").read_text(encoding="utf-8")),
        ("page.js", (_HERE / "page.js").read_text(encoding="utf-8")),
        ("data", data),
    ):
        before, _, after = page.partition(f"/*{{{name}}}*/")
        page = before + content + after
    return _replace(path, page)


def read_run(folder: Path) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Args:
        folder: Where it was written to.

    Returns:
        The run.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or of another version.
    """
    path = folder / RECORD_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} must be what loader.report() wrote; it is no JSON: {error}. Write it again."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} must be what loader.report() wrote; it is something else.")
    if content.get("version") != _VERSION:
        raise ValueError(
            f"{path} must be of version {_VERSION}; it is of {content.get('version')!r}. Write it "
            "again with this crest."
        )
    found = content.get("run")
    run: dict[str, Any] = found if isinstance(found, dict) else {}
    missing = _KEYS - run.keys()
    if missing:
        raise ValueError(f"{path} is damaged; it lacks {', '.join(sorted(missing))}.")
    return run


def _as_json(value: Any) -> str:
    return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not know, by None."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


def _replace(path: Path, text: str) -> Path:
    """Write a file in one piece: whoever reads it sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
