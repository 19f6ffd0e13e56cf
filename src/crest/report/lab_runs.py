"""What a page says of the runs of experiments, from their records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crest.page.facts import joined_regions, selected_steps, thinned

__all__ = ["facts_of_records"]


def facts_of_records(records: Iterable[Mapping[str, Any]], folder: str) -> list[dict[str, Any]]:
    """Give each record the form that a page takes, see `page.run_facts`; examples are not kept.

    Args:
        records: See `lab.run.training.train`; those of older versions lack entries.
        folder: Where they are from, for names.

    Returns:
        One run each.
    """
    return [_facts(record, folder) for record in records]


def _facts(record: Mapping[str, Any], folder: str) -> dict[str, Any]:
    history = record.get("history") or {}
    regions = history.get("records") or []
    settings = dict(record["settings"])
    own = settings.pop("strategy_settings", None) or {}
    equal_time = ", equal time" if record["equal_time"] else ""
    name = f"{record['strategy']}{equal_time}, seed {record['seed']}"
    return {
        "name": f"{folder}: {name}",
        "verdict": f"{name} ends at {record['accuracy']:.2%} after {record['steps']:,} steps.",
        "settings": settings | {f"strategy.{field}": value for field, value in own.items()},
        "machine": record.get("machine") or {},
        "versions": record.get("versions") or {},
        "numbers": {
            "accuracy": record["accuracy"],
            "steps": record["steps"],
            "selected_steps": selected_steps(regions, record["steps"]),
            "cost": record["cost"],
            "overhead": record["overhead"],
            "seconds": record["seconds"],
        },
        "seconds": history.get("seconds") or {},
        "costs": history.get("costs") or {},
        "curve": thinned(list(record["curve"])),
        "regions": thinned(joined_regions(regions)),
        "notes": ["Examples are not kept by crest run and compare; loader.report() shows them."],
    }
