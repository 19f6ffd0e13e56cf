"""What a GPU makes of selection: tests, times, and rows of Table 1, in one command of nine minutes.

    python benchmarks/gpu.py --data-dir DIR --out results/gpu
    python benchmarks/gpu.py --data-dir DIR --out results/gpu --parts cd --minutes 30
    python benchmarks/gpu.py --out results/rehearsal --device cpu --tiny
    python benchmarks/gpu.py --out results/gpu --show

In order of worth, each with a limit of its own and each record written at once:

a. The tests that need a GPU, `pytest -m gpu`, and those of the kernel.
b. Milliseconds: of picks from gradients to indices, beside the distances alone; of a training step
   by strategy and way of computing, beside the same step on one batch in one CUDA graph; of
   gradient and Hessian diagonal of the quadratic model.
c. Table 1's row for CIFAR-10 and ResNet-20 at the scale of the paper: random mini-batches, the
   default strategy, CREST as published and greedy mini-batches, seed by seed.
d. The same with 20 % of the train labels wrong.

The same command goes on where it stopped: what has a record is not done again, and a run that was
under way continues from its checkpoint. `--tiny` replaces all sizes by some that end in a minute
on a CPU, on the digits of scikit-learn: it rehearses the command, and measures nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crest import Crest
from crest.lab.data.datasets import load_dataset
from crest.lab.data.image_data import ImageData
from crest.lab.data.wrong_labels import make_wrong
from crest.lab.paper.items import Variant
from crest.lab.paper.tasks import SCALES, PaperTask
from crest.lab.run.checkpoint import Paused
from crest.lab.run.comparison import train_and_keep
from crest.lab.run.files import replace_file
from crest.lab.run.results import Results
from crest.lab.run.settings import WHOLE_STEP, RunSettings
from crest.lab.run.training import train
from crest.looking.observer import Observer
from crest.quadratic import gradient_and_hessian_diagonal, rademacher_probes
from crest.selection import facility_location, last_layer_distances, pairwise_distances
from crest.selection.facility_location import cover, greedy
from crest.strategies.registry import word_of

ROOT = Path(__file__).parent.parent
PAPER_CREST = word_of(Crest.paper)
ROWS = ("random", "online", PAPER_CREST, "greedy")  # by what a second of them may tell
TIMED = ("random", "remembered", "greedy", "online")
FULL_ACCURACY = 0.923  # of 78,000 steps of this recipe, measured once on an H100
WRONG = 0.2


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        subsets: P, r, m of the picks.
        steps: Of each timed run.
        repeats: Of each timed call.
        task: What is trained.
        seeds: Of the rows.
        shares: Of the time that parts a and b may take at most; c may take what is left but for
            the last, which is kept for d.
    """

    subsets: tuple[int, int, int]
    steps: int
    repeats: int
    task: PaperTask
    seeds: tuple[int, ...]
    shares: tuple[float, float, float]


PAPER = Sizes((50, 500, 128), 300, 10, SCALES["paper"]["cifar10"], (0, 1, 2), (0.15, 0.3, 0.2))
TINY = Sizes(
    (2, 30, 6),
    3,
    1,
    dataclasses.replace(SCALES["smoke"]["cifar10"], num_examples=(600, 60), epochs=10),
    (0,),
    (0.4, 0.4, 0.3),
)


class Records:
    """Finished measurements, in a file that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.all: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []

    def has(self, of: Mapping[str, Any]) -> bool:
        """Tell whether there is one with these entries, and not of a failure."""
        return any(of.items() <= one.items() and "failed" not in one for one in self.all)

    def add(self, of: Mapping[str, Any], **measured: Any) -> None:
        """Write one in place of a failed one, and print it."""
        record = {**of, **measured}
        self.all = [one for one in self.all if not of.items() <= one.items()] + [record]
        lines = ",\n".join(json.dumps(one) for one in self.all)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._path, f"[\n{lines}\n]\n".encode())
        print(json.dumps(record), flush=True)

    def measure(
        self, of: dict[str, Any], ends: float, device: torch.device, call: Callable[[], Any]
    ) -> None:
        """Add what a call measures, unless it is there or time is up; what fails is told, too.

        A failure keeps nothing from being measured after it, and is tried again by the next call
        of the command.
        """
        if self.has(of) or time.monotonic() > ends:
            return
        try:
            measured = call()
        except Exception as error:
            measured = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        self.add(of, **measured, **machine(device))


class Quiet:
    """Hears how far runs are, and says the least of it."""

    def plan(self, steps: Iterable[int]) -> None:
        """Nothing to say."""

    def begin(self, settings: RunSettings, steps: int) -> None:
        """Say which run it is."""
        print(f"{settings.strategy}, seed {settings.seed}: {steps} steps", flush=True)

    def wait(self, settings: RunSettings) -> None:
        """Say why nothing happens."""
        print("another process trains it", flush=True)

    def advance(self, step: int) -> None:
        """Nothing to say."""

    def finish(self, record: dict[str, Any], *, kept: bool) -> None:
        """Nothing to say: `Records` will."""

    def fail(self, settings: RunSettings, error: ValueError) -> None:
        """Nothing to say: the error is raised."""


def machine(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
    }


def run_tests(sizes: Sizes, device: torch.device, records: Records, ends: float) -> None:
    """Part a: what pytest says of the tests that need a GPU."""
    if records.has({"part": "a", "passed": True}):
        return
    chosen = ["-m", "gpu", "tests"]
    if sizes is TINY:
        chosen = ["tests/selection/test_triton_facility_location.py", "-k", "room or asked"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(ends - time.monotonic(), 1),
            check=False,
        )
        passed, told = done.returncode == 0, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        passed, told = False, f"took longer than {late.timeout:.0f} s"
    tail = told.strip().splitlines()[-15:]
    records.add({"part": "a"}, passed=passed, tail=tail, **machine(device))


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Time a call that was made once before, waiting for the device each time."""
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1000 * (time.perf_counter() - start))
    return times[1:]


def picks(sizes: Sizes, device: torch.device) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Name each way to pick, what its milliseconds are divided by, and how to do it."""
    count, r, m = sizes.subsets
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, r, 10, generator=generator)
    errors = (logits.softmax(-1) - torch.eye(10)[logits.argmax(-1)]).to(device)
    hidden = torch.randn(count, r, 64, generator=generator).to(device)
    matrix = pairwise_distances(errors)
    yield "distances of logits", count, lambda: pairwise_distances(errors)
    yield "distances of weight", count, lambda: last_layer_distances(errors, hidden)
    yield "logits", count, lambda: facility_location(errors, m)
    yield "input", count, lambda: facility_location(hidden, m)
    yield "weight", count, lambda: cover(last_layer_distances(errors, hidden), m)
    yield "logits, one subset", 1, lambda: facility_location(errors[:1], m)
    yield "picks of a matrix, plain torch", count, lambda: greedy(matrix, m, None)


def time_all(
    sizes: Sizes, data: ImageData, device: torch.device, records: Records, ends: float
) -> None:
    """Part b, from the kernels to whole runs."""
    for name, count, call in picks(sizes, device):
        of: dict[str, Any] = {"part": "b", "what": "picks", "name": name}
        measured = lambda call=call, count=count: {  # noqa: E731
            "ms_a_subset": statistics.median(milliseconds(call, device, sizes.repeats)) / count
        }
        records.measure(of, ends, device, measured)
    for precision in ("float32", "bfloat16"):
        for what, measure in (("floor", floor), ("quadratic", quadratic)):
            of = {"part": "b", "what": what, "precision": precision}
            records.measure(of, ends, device, partial(measure, sizes, data, device, precision))
    ways = [(word, mode) for word in TIMED for mode in (None, WHOLE_STEP)]
    if device.type == "cuda":
        ways.append((TIMED[0], "reduce-overhead"))  # last: it takes long to compile
    for word, mode in ways:
        of = {"part": "b", "what": "step", "strategy": word, "compile": mode}
        records.measure(of, ends, device, partial(step, sizes, data, device, word, mode))


def step(
    sizes: Sizes, data: ImageData, device: torch.device, strategy: str, mode: str | None
) -> dict[str, Any]:
    """Milliseconds of a step of a short run, on the host's clock, and what they went to."""
    settings = RunSettings(
        data=sizes.task.data,
        network=sizes.task.network,
        strategy=strategy,
        batch_size=sizes.task.batch_size,
        num_steps=sizes.steps,
        evaluations=1,
        device=str(device),
        threads=1,
        autocast="bfloat16",
        compile=mode,
    )
    # The one evaluation is off the clock, but takes its time.
    few = dataclasses.replace(
        data, test_images=data.test_images[:250], test_labels=data.test_labels[:250]
    )
    record = train(settings, few)
    parts = {name: 1000 * s / sizes.steps for name, s in record["history"]["seconds"].items()}
    return {"ms_a_step": 1000 * record["seconds"] / sizes.steps, "ms_by_component": parts}


def network_and_batch(
    sizes: Sizes, data: ImageData, device: torch.device
) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = data.build_network(sizes.task.network).to(device)
    model = model.to(memory_format=torch.channels_last)
    m = sizes.task.batch_size
    views = data.make_views(device, augment=False)
    images = torch.stack([image for image, _ in views.__getitems__(range(m))])
    return model, images, data.train_labels[:m].to(device)


def replayed(call: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Capture a call in one CUDA graph, and return its replay; without a GPU the call itself."""
    if device.type != "cuda":
        return call
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def floor(sizes: Sizes, data: ImageData, device: torch.device, precision: str) -> dict[str, float]:
    """Milliseconds of forward, backward and update on one batch, without data or selection."""
    model, images, labels = network_and_batch(sizes, data, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)
    dtype = torch.bfloat16 if precision == "bfloat16" else None

    def step() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs = model(images)
        loss = nn.functional.cross_entropy(outputs.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    times = milliseconds(replayed(step, device), device, sizes.repeats)
    return {"ms_a_step": statistics.median(times)}


def quadratic(
    sizes: Sizes, data: ImageData, device: torch.device, precision: str
) -> dict[str, float]:
    """Milliseconds of gradient and Hessian diagonal by one probe, on one batch.

    As the library takes them, and as one captured double backward pass; and how far the diagonal of
    the second is off that of the first, relative, in the Euclidean norm.
    """
    model, images, labels = network_and_batch(sizes, data, device)
    dtype = torch.bfloat16 if precision == "bfloat16" else None
    observer = Observer(model, nn.CrossEntropyLoss(reduction="none"), dtype=dtype)
    parameters = observer.parameters("trainable")
    probes = rademacher_probes(parameters, 1, torch.Generator().manual_seed(0))

    def look() -> Tensor:
        with observer.differentiable_losses((images, labels)) as losses:
            return gradient_and_hessian_diagonal(losses.mean(), parameters, probes)[1]

    found: list[Tensor] = []

    def double_backward() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            outputs = model(images)
        loss = nn.functional.cross_entropy(outputs.float(), labels)
        found[:] = gradient_and_hessian_diagonal(loss, parameters, probes)[1:]

    expected = look()
    times = {"ms": statistics.median(milliseconds(look, device, sizes.repeats))}
    model.eval()
    captured = replayed(double_backward, device)
    times["ms_captured"] = statistics.median(milliseconds(captured, device, sizes.repeats))
    return times | {"off_by": float((found[0] - expected).norm() / expected.norm())}


def rows(
    part: str,
    sizes: Sizes,
    data: ImageData,
    device: torch.device,
    records: Records,
    out: Path,
    ends: float,
) -> None:
    """Parts c and d: runs at a budget of a tenth, with their checkpoints."""
    if part == "d":
        labels = make_wrong(data.train_labels, len(data.classes), WRONG)
        data = dataclasses.replace(data, train_labels=labels)
    results = Results(out / f"{part}.json")
    computing = {"device": str(device), "threads": 1, "compile": WHOLE_STEP}
    if device.type == "cuda":
        computing["autocast"] = "bfloat16"
    for seed in sizes.seeds:
        for word in ROWS:
            of = {"part": part, "row": word, "seed": seed}
            if records.has(of):
                continue
            settings = Variant(word, word).settings(sizes.task, data.num_train, seed, computing)
            try:
                train_and_keep(settings, data, results, Quiet(), (), deadline=ends)
            except Paused:
                return
            except ValueError as error:  # it diverged; others go on
                records.add(of, failed=str(error), **machine(device))
                continue
            found = results.find(settings.to_record(data.fingerprint))
            assert found is not None
            told = {name: found[name] for name in ("accuracy", "steps", "seconds")}
            records.add(of, **told, **machine(device))


def show(records: list[dict[str, Any]]) -> None:
    """Print each part as a table."""
    for record in records:
        if "failed" in record:
            print(f"failed: {json.dumps(record)}")
        if record["part"] == "a":
            print(f"tests: {'passed' if record['passed'] else 'failed'}; {record['tail'][-1]}")
    print("\n| | | ms |\n|---|---|---|")
    for record in records:
        if record["part"] == "b" and "failed" not in record:
            words = [
                record[key]
                for key in ("what", "name", "strategy", "compile", "precision")
                if record.get(key) is not None
            ]
            for key in ("ms_a_subset", "ms_a_step", "ms", "ms_captured"):
                if key in record:
                    print(f"| {', '.join(words)} | {key} | {record[key]:.3f} |")
    print(
        "\n| part | row | accuracy | relative error | seconds | seeds |\n|---|---|---|---|---|---|"
    )
    for part in "cd":
        for word in ROWS:
            of = [
                one
                for one in records
                if one["part"] == part and one.get("row") == word and "accuracy" in one
            ]
            if of:
                accuracy = statistics.fmean(one["accuracy"] for one in of)
                gap = abs(accuracy - FULL_ACCURACY) / FULL_ACCURACY
                seconds = statistics.fmean(one["seconds"] for one in of)
                seeds = " ".join(str(one["seed"]) for one in of)
                print(
                    f"| {part} | {word} | {100 * accuracy:.2f} % | {100 * gap:.2f} % "
                    f"| {seconds:.0f} | {seeds} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with cifar-10-batches-py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default="abcd")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--show", action="store_true", help="print what there is, measure nothing")
    arguments = parser.parse_args()
    records = Records(arguments.out / "records.json")
    if arguments.show:
        show(records.all)
        return
    began = time.monotonic()
    total = 60 * arguments.minutes * 0.97  # a step, a save and the end take some seconds
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU; --device cpu --tiny rehearses without")
    sizes = TINY if arguments.tiny else PAPER
    if not arguments.tiny and arguments.data_dir is None:
        parser.error("--data-dir DIR must name the folder of cifar-10-batches-py")
    torch.set_num_threads(1)
    data = load_dataset(sizes.task.data, arguments.data_dir or "data")
    if sizes.task.num_examples is not None:
        data = data.every(*sizes.task.num_examples)
    assert isinstance(data, ImageData)
    first, second, last = sizes.shares
    for part in arguments.parts:
        now = time.monotonic()
        if part == "a":
            run_tests(sizes, device, records, now + first * total)
        elif part == "b":
            time_all(sizes, data, device, records, now + second * total)
        else:
            keeps = last * total if part == "c" and "d" in arguments.parts else 0
            rows(part, sizes, data, device, records, arguments.out, began + total - keeps)
    print(f"{time.monotonic() - began:.0f} s; the same command goes on from here")


if __name__ == "__main__":
    main()
