"""Trains what a table or figure needs, in pieces, and finds what is kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crest.checks import check_choice
from crest.lab.data.protocol import LabelledData
from crest.lab.paper.items import ITEMS, Item
from crest.lab.paper.tasks import SCALES, PaperTask, load_task
from crest.lab.run.checkpoint import Paused
from crest.lab.run.comparison import Progress, check_runs, do_all, lacks, train_and_keep
from crest.lab.run.results import Results
from crest.lab.run.settings import RunSettings
from crest.lab.run.training import count_steps

__all__ = ["Outcome", "reproduce"]


@dataclass(frozen=True)
class Outcome:
    """What is kept of the runs of one item.

    Attributes:
        name: Of the item.
        item: The item, with no tasks but those that were asked for.
        scale: One of `SCALES`.
        tasks: Task by name.
        records: Records over seeds, by task and label of the variant.
        facts: `classes`, `train` examples and `parameters` of each task, for items that train
            nothing.
        left: Runs of this call's share that are not finished, and may go on.
        others: Runs of other shares that are not finished.
        failed: Runs of this call's share that would fail again, such as those that diverge.
    """

    name: str
    item: Item
    scale: str
    tasks: dict[str, PaperTask]
    records: dict[tuple[str, str], list[dict[str, Any]]]
    facts: dict[str, dict[str, int]]
    left: int = 0
    others: int = 0
    failed: int = 0


def reproduce(
    name: str,
    scale: str,
    *,
    data_dir: Path,
    out: Path,
    progress: Progress,
    seeds: Sequence[int] = (0,),
    tasks: Sequence[str] | None = None,
    machine: Mapping[str, Any] = MappingProxyType({"threads": 1}),
    shard: tuple[int, int] = (1, 1),
    minutes: float = math.inf,
) -> Outcome:
    """Train the runs of an item that are not kept yet.

    Runs are kept in OUT/TASK.json, and shared by all items; a run under way is saved every two
    minutes beside them, and after Ctrl-C. Runs that another process trains are left to it.

    Args:
        name: One of `ITEMS`.
        scale: One of `SCALES`.
        data_dir: Folder of data and weights.
        out: Folder of the results.
        progress: Is told how far it is.
        seeds: One run of each variant for each.
        tasks: Some of those of the item; None for all.
        machine: Fields of `RunSettings` that say where and how to compute: `device`, `threads`,
            `autocast` and `compile`.
        shard: (I, K) trains every K-th run, from the I-th on, for K processes side by side.
        minutes: Stops after these, in the middle of a run if need be.

    Returns:
        What is kept now.

    Raises:
        FileNotFoundError: If data or weights are missing.
        ValueError: If a name is unknown or a value out of its range.
    """
    check_choice("item", name, ITEMS)
    check_choice("scale", scale, SCALES)
    item = ITEMS[name]
    for task in tasks or ():
        check_choice(f"task of {name}", task, item.tasks)
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"shard must be I/K with 1 <= I <= K; got {index}/{count}.")
    chosen = {task: SCALES[scale][task] for task in item.tasks if not tasks or task in tasks}
    results = {task: Results(out / f"{task}.json") for task in chosen}
    if not item.trains and not item.variants:
        return Outcome(name, item, scale, chosen, {}, {})
    data = {task: load_task(of, data_dir) for task, of in chosen.items()}
    deadline = time.monotonic() + 60 * minutes
    plan = [
        (task, variant.label, variant.settings(of, data[task].num_train, seed, machine))
        for seed in dict.fromkeys(seeds)
        for task, of in chosen.items()
        for variant in item.variants
    ]
    keys = [settings.to_record(data[task].fingerprint) for task, _, settings in plan]
    # Places in the whole plan, so that a process that starts later takes the same share.
    share = range(len(plan))[index - 1 :: count]
    failed: set[int] = set()
    if item.trains:
        mine = [
            (place, task, settings)
            for place, (task, _, settings) in enumerate(plan)
            if place in share and lacks(results[task].find(keys[place]), item.diagnostics)
        ]
        for task, of in data.items():
            check_runs([settings for _, planned, settings in mine if planned == task], of)
        progress.plan(count_steps(settings, data[task]) for _, task, settings in mine)

        def attempt(job: tuple[int, str, RunSettings], waits: bool) -> bool:
            place, task, settings = job
            try:
                return train_and_keep(
                    settings,
                    data[task],
                    results[task],
                    progress,
                    item.diagnostics,
                    deadline=deadline,
                    waits=waits,
                )
            except ValueError as error:
                progress.fail(settings, error)
                failed.add(place)
                return True

        with contextlib.suppress(Paused):
            do_all(mine, attempt)
    records: dict[tuple[str, str], list[dict[str, Any]]] = {}
    left = others = 0
    for found in results.values():
        found.read_again()
    for place, ((task, label, _), key) in enumerate(zip(plan, keys, strict=True)):
        record = results[task].find(key)
        if record is not None and not lacks(record, item.diagnostics):
            records.setdefault((task, label), []).append(record)
        elif item.trains and place not in failed:
            left += place in share
            others += place not in share
    facts = {} if item.trains else {task: _facts(of, data[task]) for task, of in chosen.items()}
    return Outcome(name, item, scale, chosen, records, facts, left, others, len(failed))


def _facts(task: PaperTask, data: LabelledData) -> dict[str, int]:
    network = data.build_network(task.network)
    return {
        "classes": len(data.classes),
        "train": data.num_train,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
