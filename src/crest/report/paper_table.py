"""A table of the paper beside ours, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from crest.lab.paper import SCALES, Outcome, PaperTask
from crest.lab.paper.published import PUBLISHED, SETUPS, STATED

__all__ = ["format_item", "share_of", "title"]

Records = Sequence[dict[str, Any]]


def title(outcome: Outcome) -> str:
    """Say what is shown, at which scale, and what was trained.

    Args:
        outcome: What is kept of the runs.

    Returns:
        One line.
    """
    trained = "; ".join(dict.fromkeys(task.stand_in for task in outcome.tasks.values()))
    how = {
        f", {words} {settings[name]}"
        for records in outcome.records.values()
        for settings in [record["settings"] for record in records]
        for name, words in (("autocast", "with autocast to"), ("compile", "compiled by mode"))
        if settings.get(name) is not None
    }
    name = outcome.name.replace("table", "Table ").replace("fig", "Figure ")
    return f"{name} at {outcome.scale} scale ({trained}{''.join(sorted(how))}): {outcome.item.what}"


def format_item(outcome: Outcome) -> str:
    """Lay out our numbers beside the paper's.

    Args:
        outcome: What is kept of the runs.

    Returns:
        Title, table and notes, as Markdown.
    """
    special = {"table2": _seconds, "table4": _setups, "table6": _settings}
    rows = special.get(outcome.name, _results)(outcome)
    notes = [f"Paper: {STATED[outcome.name]}"]
    unfinished = outcome.left + outcome.others + outcome.failed
    if unfinished:
        notes.append(f"{unfinished} run(s) are not finished; `-` and missing seeds are theirs.")
    lines = [f"## {title(outcome)}", "", _line(rows[0]), "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *map(_line, rows[1:]), "", *notes])


def share_of(records: Records, base: Records, key: str) -> list[float]:
    """Divide a number of each run by that of the other run of the same seed.

    Args:
        records: Runs of one variant.
        base: Runs of the other.
        key: Of the number.

    Returns:
        Fractions, for the seeds that both have.
    """
    by_seed = {record["seed"]: record[key] for record in base}
    return [
        record[key] / by_seed[record["seed"]] for record in records if by_seed.get(record["seed"])
    ]


def _results(outcome: Outcome) -> list[list[str]]:
    """One row for each task and variant."""
    columns = _columns(outcome)
    published = PUBLISHED.get(outcome.name, {})
    header = ["row of the paper", "method"]
    for name in columns:
        header += [f"{name} %" if name not in _PLAIN else name]
        header += ["paper"] if name in published else []
    rows = [header]
    for task, of in outcome.tasks.items():
        for variant in outcome.item.variants:
            cells = [of.title, variant.label]
            some = outcome.records.get((task, variant.label), [])
            for name, measure in columns.items():
                cells.append(_mean(measure(task, some), name))
                if name in published:
                    cells.append(_published(published[name].get(task, {}).get(variant.label)))
            rows.append(cells)
    return rows


_Measure = Callable[[str, Records], Iterable[float]]
_PLAIN = (
    *("updates", "cost in random steps", "seconds", "seeds"),
    *("normalized bias", "normalized error", "union error"),
    *("variance of mini-batches", "of random batches", "of random subsets V_r"),
    *("score, first fifth", "score, last fifth", "score of all", "excluded"),
    *("picks of the most picked", "never picked"),
)


def _columns(outcome: Outcome) -> dict[str, _Measure]:
    """What is shown of each item, beside what is shown of all."""
    special: dict[str, list[str]] = {
        "table3": ["relative error", "updates"],
        "fig1": ["normalized bias", "variance of mini-batches", "union error"],
        "fig2": ["run time / full", "accuracy / full"],
        "fig3": ["accuracy / greedy", "updates / greedy"],
        "fig4": ["updates"],
        "fig5": [
            *("score, first fifth", "score, last fifth", "score of all"),
            *("never learned, first fifth", "never learned, last fifth", "never learned of all"),
        ],
        "fig6": ["normalized bias", "normalized error", "union error", "variance of mini-batches"],
        "fig7": ["excluded", "accuracy on excluded", "never picked", "picks of the most picked"],
        "fig9": ["variance of mini-batches", "of random batches", "of random subsets V_r"],
    }

    def relative(base: str, key: str) -> _Measure:
        return lambda task, some: [
            100 * share for share in share_of(some, outcome.records.get((task, base), []), key)
        ]

    def relative_error(task: str, some: Records) -> list[float]:
        return [abs(100 - share) for share in relative("Full", "accuracy")(task, some)]

    def plain(key: str, factor: float = 1.0) -> _Measure:
        return lambda task, some: [factor * record[key] for record in some]

    known: dict[str, _Measure] = {
        "relative error": relative_error,
        "updates": plain("updates"),
        "run time / full": relative("Full", "seconds"),
        "accuracy / full": relative("Full", "accuracy"),
        "accuracy / greedy": relative("Greedy mini-batch", "accuracy"),
        "updates / greedy": relative("Greedy mini-batch", "updates"),
        "normalized bias": _gradients("normalized_bias"),
        "normalized error": _gradients("normalized_error"),
        "union error": _gradients("union_error"),
        "variance of mini-batches": _gradients("variance"),
        "of random batches": _gradients("random_variance"),
        "of random subsets V_r": _gradients("subset_variance"),
        "score, first fifth": _picked("score", 0.0, 0.2),
        "score, last fifth": _picked("score", 0.8, 1.0),
        "score of all": _diagnosed(lambda found: found["forgetting"]["mean"]),
        "never learned, first fifth": _picked("never_learned", 0.0, 0.2, 100.0),
        "never learned, last fifth": _picked("never_learned", 0.8, 1.0, 100.0),
        "never learned of all": _diagnosed(
            lambda found: _percent(found["forgetting"].get("never_learned"))
        ),
        "excluded": _diagnosed(lambda found: found["excluded"][-1]["excluded"]),
        "accuracy on excluded": _diagnosed(
            lambda found: _percent(found["excluded"][-1]["accuracy"])
        ),
        "never picked": _diagnosed(lambda found: found["selections"]["histogram"][0]),
        "picks of the most picked": _diagnosed(
            lambda found: len(found["selections"]["histogram"]) - 1
        ),
        "accuracy": plain("accuracy", 100.0),
        "cost in random steps": plain("cost"),
        "seconds": plain("seconds"),
        "seeds": lambda task, some: [float(len(some))],
    }
    always = ["accuracy", "cost in random steps", "seconds", "seeds"]
    names = [*special.get(outcome.name, ["relative error"]), *always]
    return {name: known[name] for name in names}


def _gradients(key: str) -> _Measure:
    """Average over the steps of a run at which gradients were measured."""

    def measure(task: str, some: Records) -> list[float]:
        means = []
        for record in some:
            points = record.get("diagnostics", {}).get("gradient_error", [])
            values = [point[key] for point in points if point[key] is not None]
            means += [statistics.fmean(values)] if values else []
        return means

    return measure


def _picked(key: str, low: float, high: float, factor: float = 1.0) -> _Measure:
    """Average what is known of forgetting over what was picked in a part of the run."""

    def measure(task: str, some: Records) -> list[float]:
        means = []
        for record in some:
            periods = record.get("diagnostics", {}).get("forgetting", {}).get("selected", [])
            inside = [
                factor * period[key]
                for period in periods
                if low < period["step"] / record["steps"] <= high and key in period
            ]
            means += [statistics.fmean(inside)] if inside else []
        return means

    return measure


def _diagnosed(read: Callable[[dict[str, Any]], float | None]) -> _Measure:
    def measure(task: str, some: Records) -> list[float]:
        found = [read(record["diagnostics"]) for record in some if record.get("diagnostics")]
        return [value for value in found if value is not None]

    return measure


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def _mean(values: Iterable[float], name: str) -> str:
    found = list(values)
    if not found:
        return "-"
    digits = 0 if name in ("seeds", "cost in random steps", "updates", "excluded") else 2
    if name in ("seconds", "run time / full", "updates / greedy"):
        digits = 1
    spread = f" ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else ""
    return f"{statistics.fmean(found):,.{digits}f}{spread}"


def _published(value: tuple[float, ...] | None) -> str:
    return "-" if value is None else " ± ".join(f"{number:g}" for number in value)


def _seconds(outcome: Outcome) -> list[list[str]]:
    """Table 2: what a component takes each time."""
    (task,) = outcome.tasks
    crest = outcome.records.get((task, "CREST"), [])
    craig = outcome.records.get((task, "CRAIG"), [])

    def each(some: Records, component: str, times: Callable[[dict[str, Any]], float]) -> str:
        found = [
            record["history"]["seconds"][component] / count
            for record in some
            for count in [times(record)]
            if count
        ]
        return f"{statistics.fmean(found):.4f}" if found else "-"

    def coresets(record: dict[str, Any]) -> int:
        regions = record["history"]["records"]
        return sum(region["num_coresets"] for region in regions if region["updated"])

    def updates(record: dict[str, Any]) -> int:
        return int(record["updates"])

    def checks(record: dict[str, Any]) -> int:
        return sum("relative_error" in region for region in record["history"]["records"])

    return [
        ["step", "seconds", "paper"],
        ["selection (CREST), one mini-batch", each(crest, "select", coresets), "0.006"],
        ["its forward pass of V_p", each(crest, "features", coresets), "-"],
        [
            "selection (CRAIG), share of one mini-batch",
            each(craig, "select", lambda record: record["steps"]),
            "0.089",
        ],
        ["selection (CRAIG), whole subset", each(craig, "select", updates), "-"],
        ["its forward pass of all examples", each(craig, "features", updates), "-"],
        ["loss approximation, Eq. (6)", each(crest, "quadratic", updates), "0.115"],
        ["checking threshold, Eq. (10)", each(crest, "check", checks), "0.796"],
    ]


def _setups(outcome: Outcome) -> list[list[str]]:
    """Table 4."""
    columns = ("classes", "train", "parameters", "accuracy of full training %")
    rows = [["row of the paper", *(cell for name in columns for cell in (name, "paper"))]]
    for task, of in outcome.tasks.items():
        facts = [f"{outcome.facts[task][name]:,}" for name in columns[:3]]
        full = outcome.records.get((task, "Full"), [])
        facts.append(_mean((100 * record["accuracy"] for record in full), "accuracy"))
        cells = (cell for pair in zip(facts, SETUPS[task], strict=True) for cell in pair)
        rows.append([of.title, *cells])
    return rows


def _settings(outcome: Outcome) -> list[list[str]]:
    """Table 6, and what Section 5 says of all."""

    def cells(of: PaperTask) -> list[str]:
        shares = f"{100 * of.subset_share:g} %"
        return [
            *(f"{value:g}" for value in (of.error_threshold, of.interval_multiplier)),
            *(shares, str(of.epochs), str(of.batch_size), f"{of.lr:g}", of.optimizer),
        ]

    names = ("tau", "h", "r / n", "epochs", "m", "learning rate", "optimizer")
    rows = [["row of the paper", *(cell for name in names for cell in (name, "paper"))]]
    for task, of in outcome.tasks.items():
        pairs = zip(cells(of), cells(SCALES["paper"][task]), strict=True)
        rows.append([of.title, *(cell for pair in pairs for cell in pair)])
    return rows


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
