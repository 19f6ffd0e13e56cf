"""When coresets were updated, and why: the paper's Figure 4 (left) from saved runs.

    python benchmarks/updates.py results/first-cifar10.json

reads the records that `crest compare` wrote and prints, for each tenth of training, the mean over
seeds of the number of checks and updates, of T_1, and of the parts of the relative error rho; and
what rho would be of the constant, the linear and the quadratic part of the loss model. Then what is
in play, the effective size of a mini-batch, and at the end of the tenth, in percent, how many of
the excluded examples are right (with `--diagnostics excluded`) and the test accuracy. A column of
which nothing was recorded is left out, so that any strategy's run can be read:

    python benchmarks/updates.py results/paper-scale/greedy-exclusion.json
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from crest.lab.run.results import Results

PARTS = 10
NOTHING = "nan"


def errors(check: dict) -> dict[str, float]:
    """Give rho of the constant, the linear and the quadratic part, no more than 1 each."""
    names = ("constant", "linear", "quadratic")  # records of old have none
    return {name: min(check.get(f"error_{name}", math.nan), 1.0) for name in names}


def mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def mean_of(records: list[dict], name: str) -> float:
    return mean([abs(record[name]) for record in records if name in record])


def last(entries: list[dict], name: str) -> float:
    """Give a percentage as it was measured last, nan if it was not."""
    return 100 * entries[-1][name] if entries else math.nan


def summarize(runs: list[dict]) -> list[dict[str, str]]:
    """One row of cells for each tenth of training, by column."""
    rows = []
    for part in range(PARTS):

        def of_part(entries: list[dict], run: dict, part: int = part) -> list[dict]:
            return [e for e in entries if part <= e["step"] * PARTS / run["steps"] < part + 1]

        def at_end(entries: list[dict], run: dict, part: int = part) -> list[dict]:
            """What was measured after steps of the part, which counts those taken."""
            return [e for e in entries if part < e["step"] * PARTS / run["steps"] <= part + 1]

        found = [e for run in runs for e in of_part(run["history"]["records"], run)]
        checks = [record for record in found if "relative_error" in record]
        updates = [record for record in found if record.get("updated")]
        rho = [errors(check) for check in checks]
        noise = mean([check["check_loss_error"] / check["check_loss"] for check in checks])
        curves = [at_end(run["curve"], run) for run in runs]
        excluded = [at_end(run.get("diagnostics", {}).get("excluded", []), run) for run in runs]
        rows.append(
            {
                "part": f"{part * 10}-{part * 10 + 10} %",
                "checks": f"{len(checks) / len(runs):.1f}",
                "updates": f"{len(updates) / len(runs):.1f}",
                "T1": f"{mean_of(found, 'check_interval'):.1f}",
                "rho": f"{mean_of(checks, 'relative_error'):.3f}",
                **{name: f"{mean([e[name] for e in rho]):.3f}" for name in errors({})},
                "noise of L^r": f"{noise:.3f}",
                "size of g.d": f"{mean_of(checks, 'linear_term'):.3f}",
                "d.H.d / 2": f"{mean_of(checks, 'quadratic_term'):.3f}",
                "L^r": f"{mean_of(checks, 'check_loss'):.2f}",
                "norm of H": f"{mean_of(updates, 'curvature_norm'):.0f}",
                "active": f"{mean_of(found, 'active'):.0f}",
                "effective batch": f"{mean_of(found, 'effective_batch'):.0f}",
                "right %": f"{mean([last(entries, 'accuracy') for entries in excluded]):.1f}",
                "accuracy %": f"{mean([last(entries, 'accuracy') for entries in curves]):.1f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="results.json of crest compare")
    records = Results(parser.parse_args().results).records
    by: dict[tuple[str, int], list[dict]] = {}
    for record in records:
        if not record.get("equal_time"):  # random ones of as many seconds as another run
            by.setdefault((record["strategy"], record["steps"]), []).append(record)
    for (strategy, steps), runs in by.items():
        print(f"\n{strategy}, {steps} steps, seeds: {len(runs)}\n")
        rows = summarize(runs)
        columns = [name for name in rows[0] if any(row[name] != NOTHING for row in rows)]
        cells = [[row[c].replace(NOTHING, "-") for c in columns] for row in rows]
        for line in [columns, ["---"] * len(columns), *cells]:
            print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
