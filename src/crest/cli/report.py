"""`crest report`: puts runs on one page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from crest.cli.machine import add_traceback
from crest.lab.run.results import Results
from crest.page import PAGE_NAME, RECORD_NAME, read_run, write_page
from crest.report.lab_runs import facts_of_records
from crest.report.summary import verdict

__all__ = ["add_to"]

_RESULTS = "results.json"


def add_to(commands: Any) -> None:
    """Add the command.

    Args:
        commands: Subparsers of the whole.
    """
    parser = commands.add_parser(
        "report",
        help="put runs on one page: what was selected, what it cost, what was found",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="FOLDER",
        help=f"with {RECORD_NAME}, of loader.report(), or {_RESULTS}, of crest run and compare",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the page (default: {PAGE_NAME} in the first folder)",
    )
    parser.set_defaults(command=_report)
    add_traceback(parser)


def _report(chosen: argparse.Namespace) -> None:
    runs: list[dict[str, Any]] = []
    verdicts = []
    missing = []
    for folder in chosen.folders:
        found, said = _read(folder)
        runs += found
        verdicts += [said] if said else []
        if not found:
            missing.append(str(folder))
    if missing:
        raise ValueError(
            f"{', '.join(missing)} must hold {RECORD_NAME}, which loader.report() writes, or "
            f"{_RESULTS}, which crest run and crest compare do; there is neither, or no run in it."
        )
    if not verdicts or len(chosen.folders) > 1:
        verdicts = [_side_by_side(runs), *verdicts]
    path = write_page(runs, verdicts[0], chosen.out or chosen.folders[0] / PAGE_NAME)
    print(f"{verdicts[0]}\n\nWritten: {path}")


def _read(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Read the runs of a folder, and what they say; none if there are none."""
    runs, said = [], ""
    if (folder / RECORD_NAME).exists():
        runs.append(read_run(folder))
        said = runs[0]["verdict"]
    compressed = folder / f"{_RESULTS}.xz"
    if (folder / _RESULTS).exists() or compressed.exists():
        records = Results(folder / _RESULTS).records
        runs += facts_of_records(records, folder.resolve().name)
        said = verdict(records) or said
    return runs, said


def _side_by_side(runs: list[dict[str, Any]]) -> str:
    """Say which run is best, and at what cost, where that was measured."""
    measured = [run for run in runs if run["numbers"].get("accuracy") is not None]
    if len(measured) < 2:
        return f"{len(runs)} runs side by side." if len(runs) > 1 else runs[0]["verdict"]
    ordered = sorted(measured, key=lambda run: -run["numbers"]["accuracy"])
    best, worst = ordered[0], ordered[-1]
    return (
        f"{best['name']} ends at {best['numbers']['accuracy']:.2%} in "
        f"{best['numbers']['seconds']:,.0f} s, {worst['name']} at "
        f"{worst['numbers']['accuracy']:.2%} in {worst['numbers']['seconds']:,.0f} s; they are "
        "compared at their ends, not at equal seconds."
    )
