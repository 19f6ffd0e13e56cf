"""What several processes gain and pay: steps a second, planning, and bytes told.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --worlds 1 2 --strategies random online --batch-size 64

Trains a network under DistributedDataParallel (gloo, one thread a process) on images of noise, with
the loop of the README: one process on the whole batch, then several on their parts of the same
batches. Two epochs warm up. Seconds are of the wall and of the processor: the latter say what
a process did, whoever else was at work. Bytes are counted where they are sent, exactly: what one
process tells each of the others, beside the gradients that DistributedDataParallel averages. Prints
a table, and writes the records.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed import distributed_c10d
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.lab.networks.vision import build_network
from crest.ranks import Ranks
from crest.selection.facility_location import facility_location

CLASSES = 10
WARM_UP = 2  # epochs
KEPT = Path(__file__).parent.parent / "results" / "ranks.json"


class Told:
    """Counts the bytes that this process tells each of the others, by what they are of."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.messages = 0
        self._what = ""
        gather, mean = Ranks.gather, Ranks.mean
        all_gather, all_reduce = distributed_c10d.all_gather, distributed.all_reduce

        def counted_gather(ranks: Ranks, what: str, value: Any) -> list[Any]:
            self._what, self.messages = what, self.messages + 1
            return gather(ranks, what, value)

        def counted_mean(ranks: Ranks, values: torch.Tensor) -> torch.Tensor:
            self._what, self.messages = "mean", self.messages + 1
            return mean(ranks, values)

        def send(lists: Any, tensor: torch.Tensor, *rest: Any, **options: Any) -> Any:
            self.bytes[self._what] += tensor.numel() * tensor.element_size()
            return all_gather(lists, tensor, *rest, **options)

        def reduce(tensor: torch.Tensor, *rest: Any, **options: Any) -> Any:
            self.bytes[self._what] += tensor.numel() * tensor.element_size()
            return all_reduce(tensor, *rest, **options)

        Ranks.gather, Ranks.mean = counted_gather, counted_mean  # type: ignore[method-assign]
        distributed_c10d.all_gather = send  # an object is gathered as its size and its bytes
        distributed.all_reduce = reduce


def train(arguments: argparse.Namespace, strategy: str, world: int) -> dict[str, Any]:
    """Train one process of a run, and measure it."""
    torch.manual_seed(0)
    images = torch.randn(arguments.examples, 3, 32, 32)
    data = TensorDataset(images, torch.randint(CLASSES, (arguments.examples,)))
    network = build_network(arguments.network, 3, 32, CLASSES)
    model = nn.parallel.DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(output, target, reduction="none")

    loader = crest.CoresetLoader(
        DataLoader(data, arguments.batch_size // world, shuffle=True),
        model,
        loss_fn=loss_fn,
        strategy=strategy,
        budget=arguments.budget,
    )
    told, planning = Told(), Counter[str]()
    plan = loader._plan

    def timed_plan() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        plan()
        planning["seconds"] += time.perf_counter() - wall
        planning["cpu_seconds"] += time.process_time() - cpu

    loader._plan = timed_plan  # type: ignore[method-assign]
    steps, wall, cpu = 0, 0.0, 0.0
    facility_location(torch.randn(8, 3), 2)  # numba starts
    for epoch in range(WARM_UP + arguments.epochs):
        if epoch == WARM_UP:
            told.bytes.clear()
            planning.clear()
            told.messages = 0
            wall, cpu = time.perf_counter(), time.process_time()
        for inputs, targets, weights in loader:
            optimizer.zero_grad()
            crest.weighted_mean(loss_fn(model(inputs), targets), weights).backward()
            optimizer.step()
            steps += epoch >= WARM_UP
    return {
        "steps": steps,
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "planning": dict(planning),
        "bytes": dict(told.bytes),
        "messages": told.messages,
    }


def run_process(
    sender: Any, store: str, rank: int, world: int, arguments: argparse.Namespace, strategy: str
) -> None:
    """Join the others, train, and answer."""
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    sender.send(train(arguments, strategy, world))
    if world > 1:
        distributed.destroy_process_group()


def run(arguments: argparse.Namespace, strategy: str, world: int) -> dict[str, Any]:
    """Run all processes of one way, and put what they measured together."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        store = (Path(folder) / "store").as_uri()
        ends = [context.Pipe(duplex=False) for _ in range(world)]
        processes = [
            context.Process(
                target=run_process, args=(ends[rank][1], store, rank, world, arguments, strategy)
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        answers = [receiver.recv() for receiver, _ in ends]
        for process in processes:
            process.join()
    options = {name: value for name, value in vars(arguments).items() if name in SETTINGS}
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    return {"strategy": strategy, "world": world, **options, **machine, "processes": answers}


SETTINGS = ("network", "batch_size", "examples", "epochs", "budget")


def row(record: dict[str, Any], alone: dict[str, Any]) -> str:
    """Put one way into a row of the table; of several processes the mean."""

    def a_step(found: dict[str, Any], *path: str) -> float:
        values = []
        for process in found["processes"]:
            value: Any = process
            for key in path:
                value = value.get(key, 0)
            values.append(value / process["steps"])
        return sum(values) / len(values)

    seconds = a_step(record, "seconds")
    of_bytes = [sum(one["bytes"].values()) / one["steps"] for one in record["processes"]]
    cells = [
        record["strategy"],
        record["world"],
        f"{1 / seconds:.2f}",
        f"{record['batch_size'] / seconds:.0f}",
        f"{a_step(alone, 'seconds') / seconds:.2f}",
        f"{1000 * a_step(record, 'cpu_seconds'):.0f}",
        f"{1000 * a_step(record, 'planning', 'cpu_seconds'):.1f}",
        f"{1000 * a_step(record, 'planning', 'seconds'):.1f}",
        f"{sum(of_bytes) / len(of_bytes):,.0f}",
        f"{record['processes'][0]['messages'] / record['processes'][0]['steps']:.2f}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="+", default=["random", "online", "greedy"])
    parser.add_argument("--worlds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--network", default="resnet8")
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--examples", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=2, help="after two of warm-up")
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--out", type=Path, default=KEPT)
    arguments = parser.parse_args()
    print(
        "| strategy | processes | steps a second | examples a second | to 1 process "
        "| CPU ms a step | of it planning | planning, wall ms | bytes told a step "
        "| messages a step |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    records: list[dict[str, Any]] = []
    for strategy in arguments.strategies:
        for world in arguments.worlds:
            records.append(run(arguments, strategy, world))
            alone = next(one for one in records if one["strategy"] == strategy)
            print(row(records[-1], alone), flush=True)
    arguments.out.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
