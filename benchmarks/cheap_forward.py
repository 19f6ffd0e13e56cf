"""Where a forward pass is cheap beside a training step, and whether coresets pay there.

    python benchmarks/cheap_forward.py price --data-dir DIR
    python benchmarks/cheap_forward.py memory --data-dir DIR
    python benchmarks/cheap_forward.py train --data-dir DIR --out results/cheap-forward.json
    python benchmarks/cheap_forward.py show results/cheap-forward.json

`price` times an observed example over a trained one: for each lever of the observer, and for ways
of training whose steps are dear or whose batches are small. `memory` measures the tensors that live
at once in a step of the small batches. `train` compares coresets with random
mini-batches, all ResNet-8 on CIFAR-10: picked with cheaper observers, at other learning rates, in
batches held small by memory, and in adversarial training. It keeps each finished run and goes on
where it stopped; `--minutes` ends it in time. `show` prints the tables of
docs/results/cheap-forward.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from equal_time import plus_minus
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import crest
from crest.lab.data.datasets import load_dataset
from crest.lab.data.image_data import ImageData
from crest.lab.data.views import ImageViews
from crest.lab.networks.vision import build_network
from crest.lab.run.learning_rate import learning_rate_factor
from crest.looking.gradients import LastLayerGradients
from crest.looking.observer import Observer
from crest.selection import last_layer_distances

CRITERION = nn.CrossEntropyLoss(reduction="none")
RADIUS, STRIDE = 8 / 255, 2 / 255  # of the attack, in units of a pixel
NUM_ATTACKED = 2000  # test images whose accuracy under attack is measured


@dataclass(frozen=True)
class Row:
    """One way to train, compared with the others of its group."""

    group: str
    strategy: Any  # of crest, or made from the number of steps
    batch_size: int
    steps: int
    lr: float
    accumulation: int = 1
    attack_steps: int = 0
    observer: str = "model"  # or "half resolution", "quarter resolution", "proxy"
    batch_statistics: bool = False  # of the observer
    balanced: bool = False  # whether images of rare classes are repeated

    @property
    def passes(self) -> int:
        """Of a trained example, in forward passes; a step of the attack goes back to the inputs."""
        return 3 + 2 * self.attack_steps


GROUPS = ("cheaper observers", "learning rates", "batches held small", "adversarial training")


GREEDY_512 = crest.GreedyMiniBatch(subset_size=512)
PLAIN = partial(Row, batch_size=128, steps=156)
CHEAPER = partial(PLAIN, GROUPS[0], lr=0.1)
TUNED = partial(PLAIN, GROUPS[1])
SMALL = partial(Row, GROUPS[2], batch_size=16, lr=0.05)
ATTACKED = partial(Row, GROUPS[3], batch_size=64, lr=0.05, attack_steps=7)
RANDOM = crest.Random()
ROWS = {
    "random": CHEAPER(RANDOM),
    "random, 1.1 times the steps": CHEAPER(RANDOM, steps=172),
    "random, 1.4 times the steps": CHEAPER(RANDOM, steps=218),
    "coresets of 128 from 512": CHEAPER(GREEDY_512),
    "- at half the resolution": CHEAPER(GREEDY_512, observer="half resolution"),
    "- by a proxy": CHEAPER(GREEDY_512, observer="proxy"),
    **{
        f"{name}, lr {lr:g}": TUNED(strategy, lr=lr)
        for lr in (0.05, 0.2, 0.4)
        for name, strategy in (("random", RANDOM), ("coresets", GREEDY_512))
    },
    "coresets at half the resolution, lr 0.2": TUNED(
        GREEDY_512, lr=0.2, observer="half resolution"
    ),
    "random, m = 16": SMALL(RANDOM, steps=624),
    "random, m = 16, twice the steps": SMALL(RANDOM, steps=1248),
    "random, 2 x 16 accumulated, half the steps": SMALL(RANDOM, steps=312, accumulation=2),
    "random, 2 x 16 accumulated": SMALL(RANDOM, steps=624, accumulation=2),
    "random, 4 x 16 accumulated": SMALL(RANDOM, steps=624, accumulation=4),
    "coresets of 16 from 64": SMALL(crest.GreedyMiniBatch(subset_size=64), steps=624),
    "random, attacked": ATTACKED(RANDOM, steps=156),
    "random, attacked, 1.25 times the steps": ATTACKED(RANDOM, steps=195),
    "coresets of 64 from 256, attacked": ATTACKED(
        crest.GreedyMiniBatch(subset_size=256), steps=156
    ),
}


def train_all(
    runs: Iterable[tuple[dict[str, Any], Row]], data: ImageData, arguments: argparse.Namespace
) -> None:
    """Train every run, told by what its record begins with, unless it is there or time is up."""
    ends = time.monotonic() + 60 * arguments.minutes
    records = read(arguments.out)
    for of, row in runs:
        if any(of.items() <= record.items() for record in records):
            continue
        if time.monotonic() > ends:
            print("time is up; the same command goes on from here")
            return
        records.append({**of, **train(data, row, of["seed"], arguments)})
        keep(records, arguments.out)


def keep(records: list[dict[str, Any]], path: Path) -> None:
    """Write the records of finished runs, one line each, and print the newest."""
    lines = ",\n".join(json.dumps(record) for record in records)
    partial_file = path.with_suffix(".partial")
    partial_file.write_text(f"[\n{lines}\n]\n")
    partial_file.replace(path)
    print(json.dumps(records[-1]), flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Records of finished runs, none before the first."""
    return json.loads(path.read_text()) if path.exists() else []


def train(data: ImageData, row: Row, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train ResNet-8 once."""
    device = torch.device(arguments.device)
    torch.manual_seed(seed)
    model = build_network("resnet8", 3, data.train_images.shape[-1], len(data.classes))
    model = model.to(device, memory_format=torch.channels_last)
    views = ImageViews(balance(data) if row.balanced else data, device)
    observers: dict[str, dict[str, Any]] = {
        "model": {},
        "half resolution": {"transform": halve},
        "quarter resolution": {"transform": lambda batch: halve(halve(batch))},
    }
    if row.observer == "proxy":
        proxy = proxy_network().to(device)
        proxy_optimizer = torch.optim.Adam(proxy.parameters(), lr=3e-3)
        observers["proxy"] = {"model": proxy}
    loader = crest.CoresetLoader(
        DataLoader(views, batch_size=row.batch_size, shuffle=True, drop_last=True),
        model,
        loss_fn=CRITERION,
        strategy=row.strategy(row.steps) if callable(row.strategy) else row.strategy,
        accumulation_steps=row.accumulation,
        seed=seed,
        look=crest.Look(**observers[row.observer], batch_statistics=row.batch_statistics),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=row.lr, momentum=0.9, weight_decay=5e-4)
    start, batches = time.perf_counter(), 0
    while batches < row.steps * row.accumulation:
        for inputs, targets, weights in loader:
            for group in optimizer.param_groups:
                group["lr"] = row.lr * learning_rate_factor(batches // row.accumulation, row.steps)
            targets = targets.to(device)
            if row.attack_steps:
                inputs = attack(model, views, inputs, targets, row.attack_steps)
            outputs = model(inputs)
            losses = CRITERION(outputs, targets)
            loader.observe(losses, outputs)
            loss = crest.weighted_mean(losses, weights)
            (loss / row.accumulation).backward()
            if row.observer == "proxy":  # learns what the model says
                wanted = outputs.detach().softmax(1)
                functional.cross_entropy(proxy(inputs), wanted).backward()
                proxy_optimizer.step()
                proxy_optimizer.zero_grad()
            batches += 1
            if batches % row.accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
            if batches == row.steps * row.accumulation:
                break
    seconds = time.perf_counter() - start
    passes = loader.history.passes
    unit = row.passes * row.batch_size
    return {
        "accuracy": accuracy(model, views, data, device),
        "under_attack": accuracy(model, views, data, device, NUM_ATTACKED)
        if row.attack_steps
        else None,
        "steps": row.steps,
        "cost": row.steps * row.accumulation + passes["features"]["forward"] / unit,
        "seconds": seconds,
        "threads": arguments.threads,
        "device": arguments.device,
        "torch": torch.__version__,
    }


def balance(data: ImageData) -> ImageData:
    """Repeat the images of each class until it has as many as the largest."""
    classes = [(data.train_labels == label).nonzero()[:, 0] for label in range(len(data.classes))]
    most = max(len(some) for some in classes)
    rows = torch.cat([some.repeat(-(-most // len(some)))[:most] for some in classes])
    return dataclasses.replace(
        data, train_images=data.train_images[rows], train_labels=data.train_labels[rows]
    )


def halve(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Average each two by two pixels."""
    return functional.avg_pool2d(batch[0], 2), batch[1]


def accuracy(model, views, data: ImageData, device, attacked: int = 0) -> float:
    """On all test images; or on the first `attacked`, after ten steps of the attack."""
    model.eval()
    images, labels = data.test_images, data.test_labels
    if attacked:
        images, labels = images[:attacked], labels[:attacked]
    correct = 0
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    for some, targets in zip(images.split(250), labels.split(250), strict=True):
        inputs, targets = views.normalize(some.to(device)), targets.to(device)
        if attacked:
            inputs = attack(model, views, inputs, targets, 10)
        with torch.no_grad():
            correct += int((model(inputs).argmax(1) == targets).sum())
    torch.set_rng_state(generator_state)
    model.train()
    return correct / len(labels)


def show(records: list[dict[str, Any]]) -> None:
    for group in GROUPS:
        found = {
            name: [record for record in records if record["row"] == name]
            for name, row in ROWS.items()
            if row.group == group
        }
        found = {name: some for name, some in found.items() if some}
        if not found:
            continue
        base = {record["seed"]: record for record in next(iter(found.values()))}
        print(f"\n{group}\n")
        print(
            "| | seeds | accuracy % | under attack % | minus first row | cost in random steps "
            "| seconds in random steps |\n|---|---|---|---|---|---|---|"
        )
        attacked = group == GROUPS[3]
        measure = "under_attack" if attacked else "accuracy"
        for name, some in found.items():
            pairs = [100 * (r[measure] - base[r["seed"]][measure]) for r in some]
            ratios = [
                r["seconds"] / base[r["seed"]]["seconds"] * base[r["seed"]]["steps"] for r in some
            ]
            cells = [
                name,
                str(len(some)),
                plus_minus([100 * r["accuracy"] for r in some]),
                plus_minus([100 * r["under_attack"] for r in some]) if attacked else "-",
                plus_minus(pairs, sign=True),
                f"{statistics.fmean(r['cost'] for r in some):.0f}",
                f"{statistics.median(ratios):.0f}",
            ]
            print(f"| {' | '.join(cells)} |")


# What is timed


class Lora(nn.Module):
    """A frozen linear layer beside a trained one of rank 8."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down = nn.Linear(inputs, 8, bias=False)
        self.up = nn.Linear(8, outputs, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return self.frozen(hidden) + self.up(self.down(hidden))


class Block(nn.Module):
    """A transformer block of width 256 and four heads."""

    def __init__(self, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(256), nn.LayerNorm(256)])
        self.attend, self.project = linear(256, 768), linear(256, 256)
        self.widen, self.narrow = linear(256, 1024), linear(1024, 256)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (m, t, 256) to (m, t, 256)."""
        m, t, _ = hidden.shape
        parts = self.attend(self.norms[0](hidden)).view(m, t, 3, 4, 64).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(m, t, 256)
        hidden = hidden + self.project(mixed)
        return hidden + self.narrow(functional.gelu(self.widen(self.norms[1](hidden))))


class Transformer(nn.Module):
    """Four blocks on 64 tokens; with `checkpointed`, activations are computed twice."""

    def __init__(self, linear: Callable[[int, int], nn.Module], *, checkpointed: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10_000, 256).requires_grad_(linear is nn.Linear)
        self.blocks = nn.ModuleList([Block(linear) for _ in range(4)])
        self.head = nn.Linear(256, 3)
        self._checkpointed = checkpointed

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (m, t) to logits (m, 3)."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            if self._checkpointed and self.training:
                hidden = checkpoint(block, hidden, use_reentrant=False)
            else:
                hidden = block(hidden)
        return self.head(hidden.mean(1))


class Checkpointed(nn.Module):
    """Computes each block of a residual network twice instead of keeping what is inside."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Do as the network does."""
        if not self.training:
            return self.network(inputs)
        hidden = functional.relu(self.network.stem(inputs))
        for block in self.network.blocks:
            hidden = checkpoint(block, hidden, use_reentrant=False)
        return self.network.head(hidden.mean((2, 3)))


def attack(model: nn.Module, views: ImageViews, inputs: Tensor, targets: Tensor, steps: int):
    """Climb the loss within a cube around the inputs: PGD (Madry et al., 2018)."""
    unit = views.normalize(torch.full_like(inputs[:1], 255, dtype=torch.uint8)) - views.normalize(
        torch.zeros_like(inputs[:1], dtype=torch.uint8)
    )
    radius, stride = RADIUS * unit, STRIDE * unit
    was_training = model.training
    model.eval()
    moved = inputs + radius * (2 * torch.rand_like(inputs) - 1)
    for _ in range(steps):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(CRITERION(model(moved), targets).sum(), moved)
        moved = (moved.detach() + stride * slope.sign()).clamp(inputs - radius, inputs + radius)
    model.train(was_training)
    return moved


def step(model, optimizer, inputs, targets, weights, move=None) -> None:
    """One step of training; `move` changes the inputs first."""
    if move is not None:
        inputs = move(model, inputs, targets)
    crest.weighted_mean(CRITERION(model(inputs), targets), weights).backward()
    optimizer.step()
    optimizer.zero_grad()


def price_table(data: ImageData, arguments: argparse.Namespace) -> str:
    device = torch.device(arguments.device)
    views = ImageViews(data, device, augment=False)
    images = views.normalize(data.train_images[:512].to(device))
    labels = data.train_labels[:512].to(device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(10_000, (512, 64), generator=generator).to(device)
    classes = torch.randint(3, (512,), generator=generator).to(device)

    def resnet(wrap=lambda network: network) -> nn.Module:
        torch.manual_seed(0)
        network = build_network("resnet8", 3, 32, 10)
        return wrap(network).to(device, memory_format=torch.channels_last)

    def frozen(network: Any) -> Any:
        network.requires_grad_(False)
        network.blocks[-1].requires_grad_()
        network.head.requires_grad_()
        return network

    def move(model, inputs, targets):
        return attack(model, views, inputs, targets, 7)

    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)}
    adam = {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-5)}
    image, text = {**sgd, "data": (images, labels)}, {**adam, "data": (tokens, classes)}
    cases: dict[str, dict[str, Any]] = {
        "ResNet-8, m = 128": {**image, "model": resnet()},
        "- images not channels-last": {
            **image,
            "model": resnet().to(memory_format=torch.contiguous_format),
        },
        "- passes of 512": {**image, "model": resnet(), "chunk": 512},
        "- autocast, bfloat16": {**image, "model": resnet(), "dtype": torch.bfloat16},
        "- compiled": {**image, "model": resnet(), "compiled": True},
        "- half the resolution": {**image, "model": resnet(), "transform": halve},
        "- a small proxy network": {**image, "model": resnet(), "cheaper": proxy_network()},
        "- training checkpoints activations": {**image, "model": resnet(Checkpointed)},
        "- training only the last block": {**image, "model": resnet(frozen)},
        "- m = 16": {**image, "model": resnet(), "m": 16, "chunk": 64},
        "- adversarial training, 7 steps": {**image, "model": resnet(), "move": move},
        "transformer, AdamW, m = 32": {
            **text,
            "model": Transformer(nn.Linear, checkpointed=False),
            "m": 32,
        },
        "- m = 8": {
            **text,
            "model": Transformer(nn.Linear, checkpointed=False),
            "m": 8,
            "chunk": 32,
        },
        "- checkpoints": {**text, "model": Transformer(nn.Linear, checkpointed=True), "m": 32},
        "- LoRA": {**text, "model": Transformer(Lora, checkpointed=False), "m": 32},
        "- LoRA, checkpoints": {**text, "model": Transformer(Lora, checkpointed=True), "m": 32},
    }
    lines = ["| | ms per trained example | ms per observed example | price |", "|---|---|---|---|"]
    for name, case in cases.items():
        trained, observed = time_case(**case, turns=arguments.turns)
        lines.append(
            f"| {name} | {1000 * trained:.3f} | {1000 * observed:.3f} | {observed / trained:.3f} |"
        )
        print(lines[-1], flush=True)
    return "\n" + "\n".join(lines)


def time_case(
    model,
    optimizer,
    data,
    turns,
    m=128,
    chunk=None,
    move=None,
    compiled=False,
    cheaper=None,
    transform=None,
    dtype=None,
) -> tuple[float, float]:
    """Seconds of one trained and of one observed example, medians of turns that alternate."""
    model = model.to(data[0].device)
    optimizer = optimizer([p for p in model.parameters() if p.requires_grad])
    observed = cheaper or model
    if compiled:
        fast = torch.compile(model)

        def observe(batch):
            model.eval()
            with torch.no_grad():
                fast(batch[0])
            model.train()
    else:
        observer = Observer(observed, CRITERION, transform=transform, dtype=dtype)
        observe = observer.last_layer_gradients
    chunk = chunk or m
    batch = tuple(part[:m] for part in data)
    weights = torch.ones(m, device=batch[0].device)
    seconds: dict[str, list[float]] = {"train": [], "observe": []}
    model.train()
    for _ in range(turns + 1):  # the first is a rehearsal
        seconds["train"].append(timed(lambda: step(model, optimizer, *batch, weights, move)) / m)
        seconds["observe"].append(
            timed(lambda: observe(tuple(part[:chunk] for part in data))) / chunk
        )
    return statistics.median(seconds["train"][1:]), statistics.median(seconds["observe"][1:])


class PeakMemory(TorchDispatchMode):
    """Most bytes at once of the tensors that were made inside; views count once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run an operation and book what it made."""
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._alive:
                    self._alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self._alive.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return made


def memory_table(data: ImageData) -> str:
    """Peaks of one step of plain gradient descent, beside parameters, gradients and data."""
    views = ImageViews(data, torch.device("cpu"), augment=False)
    images, labels = views.normalize(data.train_images[:64]), data.train_labels[:64]
    model = build_network("resnet8", 3, 32, 10).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    observer = Observer(model, CRITERION)

    def accumulate(size: int, parts: int) -> None:
        for some, targets in zip(images.split(size)[:parts], labels.split(size), strict=False):
            CRITERION(model(some), targets).mean().backward()

    def select(chunk: int) -> None:
        chunks = zip(images.split(chunk), labels.split(chunk), strict=True)
        seen = LastLayerGradients.concatenate([*map(observer.last_layer_gradients, chunks)])
        distances = last_layer_distances(seen.errors, seen.inputs)
        picked = crest.facility_location(distances=distances, batch_size=16).indices
        CRITERION(model(images[picked]), labels[picked]).mean().backward()

    steps: dict[str, Callable[[], None]] = {
        "random, m = 16": lambda: accumulate(16, 1),
        "random, 2 x 16 accumulated": lambda: accumulate(16, 2),
        "random, m = 32": lambda: accumulate(32, 1),
        "random, m = 64": lambda: accumulate(64, 1),
        "coresets of 16 from 64, one pass": lambda: select(64),
        "coresets of 16 from 64, passes of 16": lambda: select(16),
    }
    lines = ["| | MB alive at once |", "|---|---|"]
    for name, run in steps.items():
        run()  # gradients are there from now on
        with PeakMemory() as memory:
            run()
        lines.append(f"| {name} | {memory.peak / 1e6:.1f} |")
    return "\n".join(lines)


def timed(call: Callable[[], Any]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def proxy_network() -> nn.Module:
    """Two strided convolutions on half the resolution: 0.8 % of the operations of ResNet-8."""
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def add_machine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--data-dir", required=True, help="folder with cifar-10-batches-py")
    command.add_argument("--device", default="cpu")
    command.add_argument("--threads", type=int, default=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("price", "memory", "train"):
        add_machine_options(commands.add_parser(name))
    commands.choices["price"].add_argument("--turns", type=int, default=7)
    commands.choices["train"].add_argument("--out", type=Path, required=True)
    commands.choices["train"].add_argument(
        "--minutes", type=float, default=1e9, help="stop after about these"
    )
    commands.choices["train"].add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    commands.choices["train"].add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    commands.add_parser("show").add_argument("results", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "show":
        show(json.loads(arguments.results.read_text()))
        return
    torch.set_num_threads(arguments.threads)
    data = load_dataset("cifar10", arguments.data_dir)
    if arguments.command == "price":
        print(price_table(data, arguments))
    elif arguments.command == "memory":
        print(memory_table(data))
    else:
        runs = itertools.product(arguments.seeds, arguments.rows)
        train_all(
            (({"row": name, "seed": seed}, ROWS[name]) for seed, name in runs), data, arguments
        )


if __name__ == "__main__":
    main()
