"""When coresets were updated, and why: the paper's Figure 4 (left) from saved runs.

    python benchmarks/updates.py results/first-cifar10.json

reads the records that `crest compare` wrote and prints, for each tenth of training, the mean over
seeds of the number of checks and updates, of T_1, and of the parts of the relative error rho; and
what rho would be of the constant, the linear and the quadratic part of the loss model.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from crest.lab.run.results import Results

PARTS = 10
COLUMNS = [
    "part",
    "checks",
    "updates",
    "T1",
    "rho",
    "constant",
    "linear",
    "quadratic",
    "noise of L^r",
    "size of g.d",
    "d.H.d / 2",
    "L^r",
    "norm of H",
    "active",
]


def errors(check: dict) -> list[float]:
    """Give rho of the constant, the linear and the quadratic part, no more than 1 each."""
    names = ("error_constant", "error_linear", "error_quadratic")  # records of old have none
    return [min(check.get(name, math.nan), 1.0) for name in names]


def summarize(runs: list[dict]) -> list[list[str]]:
    """One row of cells for each tenth of training."""
    rows = []
    for part in range(PARTS):
        found = [
            record
            for run in runs
            for record in run["history"]["records"]
            if part <= record["step"] * PARTS / run["steps"] < part + 1
        ]
        checks = [record for record in found if "relative_error" in record]
        updates = [record for record in found if record["updated"]]

        def mean(records: list[dict], name: str) -> float:
            return statistics.fmean(abs(r[name]) for r in records) if records else float("nan")

        noise = statistics.fmean(r["check_loss_error"] / r["check_loss"] for r in checks)
        rows.append(
            [
                f"{part * 10}-{part * 10 + 10} %",
                f"{len(checks) / len(runs):.1f}",
                f"{len(updates) / len(runs):.1f}",
                f"{mean(found, 'check_interval'):.1f}",
                f"{mean(checks, 'relative_error'):.3f}",
                *(
                    f"{statistics.fmean(error):.3f}"
                    for error in zip(*map(errors, checks), strict=True)
                ),
                f"{noise:.3f}",
                f"{mean(checks, 'linear_term'):.3f}",
                f"{mean(checks, 'quadratic_term'):.3f}",
                f"{mean(checks, 'check_loss'):.2f}",
                f"{mean(updates, 'curvature_norm'):.0f}",
                f"{mean(found, 'active'):.0f}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.json of crest compare")
    records = Results(parser.parse_args().results).records
    runs = [record for record in records if record["strategy"] in ("crest", "crest_paper")]
    print(f"{len(runs)} runs of {runs[0]['steps']} steps\n")
    for cells in [COLUMNS, ["---"] * len(COLUMNS), *summarize(runs)]:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
