"""Time selection against its goals and its peers; prints the table of docs/results/selection.md.

    python benchmarks/selection.py                # one CPU thread; a minute and a half
    python benchmarks/selection.py --device cuda

All methods of a case take turns in one process, so that a busy moment of the machine meets each of
them. Times are medians; ratios are medians of the ratios within a turn. Memory is the peak of the
resident set above what it was before the call. Peers are measured where installed:
pip install submodlib-py apricot-select.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from crest.selection import facility_location, last_layer_distances, pairwise_distances

warnings.filterwarnings("ignore", category=DeprecationWarning)

CLOCK = "perf_counter"

Row = tuple[str, str, str, str]  # case, measured, goal, met

# Numba alone first: it imports itself, and before its first kernel all that it knows to compile.
IN_A_ROW = 20  # calls with the same number of threads: a core that slept is slow to wake

FIRST_CALL = """
import sys, time, torch
from crest.selection import facility_location
clock = getattr(time, sys.argv[1])
torch.set_num_threads(1)
gradients = torch.randn(500, 10)
start = clock()
import numba
imported = clock()
from numba.core.registry import cpu_target
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
ready = clock()
facility_location(gradients, 128)
print(imported - start, ready - imported, clock() - ready)
"""

LARGE = """
import sys, time, torch
from crest.selection import facility_location
clock, method = getattr(time, sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
gradients = torch.randn(50_000, 10, generator=torch.Generator().manual_seed(0))
facility_location(gradients[:100], 10, method=method)
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if name in line)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
before = kilobytes("VmRSS")
start = clock()
facility_location(gradients, 5_000, method=method)
seconds = clock() - start
print(seconds, kilobytes("VmHWM") - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count the processor's time: for one thread on a CPU that others use as well",
    )
    arguments = parser.parse_args()
    if arguments.processor_time:
        global CLOCK
        CLOCK = "process_time"
    torch.set_num_threads(1)
    print(f"{describe_machine(arguments.device)}; time.{CLOCK}\n")
    rows = on_gpu(arguments.turns) if arguments.device == "cuda" else on_cpu(arguments.turns)
    print("| case | measured | goal | met |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def on_cpu(turns: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(25, 500, 10, generator=generator)
    distances = pairwise_distances(gradients)
    rows = against_peers(distances, turns)

    def with_threads(threads: int) -> Callable[[], object]:
        def run() -> object:
            torch.set_num_threads(threads)
            try:
                for _ in range(IN_A_ROW):
                    picked = facility_location(gradients, 128)
                return picked
            finally:
                torch.set_num_threads(1)

        return run

    times = take_turns({"one": with_threads(1), "two": with_threads(2)}, turns)
    times = {name: [seconds / IN_A_ROW for seconds in of] for name, of in times.items()}
    rows.append(at_most("features to picks, 25 x (500 -> 128), d = 10", times["one"], 15))
    case = "same, two threads against one"
    if len(os.sched_getaffinity(0)) > 1 and CLOCK == "perf_counter":
        faster = ratio(times["one"], times["two"])
        rows.append((case, f"{faster:.2f}x", "1.7x", yes(faster >= 1.7)))
    else:
        rows.append((case, "not measured", "1.7x", ""))

    medium = torch.randn(2850, 10, generator=generator)
    large = torch.randn(5000, 10, generator=generator)
    errors = torch.randn(25, 500, 10, generator=generator).softmax(2)
    errors = errors - torch.eye(10)[torch.arange(500) % 10]
    inputs = torch.randn(25, 500, 512, generator=generator).relu()
    times = take_turns(
        {
            "medium": lambda: facility_location(medium, 32),
            "large": lambda: facility_location(large, 500),
            "large rebuilt": lambda: facility_location(large, 500, method="matrix-free"),
            "last layer": lambda: facility_location(
                distances=last_layer_distances(errors, inputs), batch_size=128
            ),
            "products": lambda: (errors @ errors.mT, inputs @ inputs.mT),
        },
        turns,
    )
    relative = ratio(times["last layer"], times["products"])
    rows += [
        at_most("features to picks, 2850 -> 32, d = 10", times["medium"], 20),
        (
            "full last layer, 25 x (500 -> 128), 10 classes x 512 inputs",
            f"{milliseconds(times['last layer'])}, {relative:.2f}x its float32 matrix products",
            "3x",
            yes(relative <= 3),
        ),
        at_most("one class, 5000 -> 500, d = 10", times["large"], 150),
        ("same, matrix-free", milliseconds(times["large rebuilt"]), "", ""),
    ]
    for method, goal in (("matrix-free", "40 s, 500 MB"), ("stochastic", "")):
        seconds, kilobytes = in_new_process(LARGE, CLOCK, method)
        measured = f"{seconds:.1f} s, {kilobytes / 1000:.1f} MB above the input"
        met = yes(seconds <= 40 and kilobytes <= 500_000) if goal else ""
        rows.append((f"50,000 -> 5,000, d = 10, {method}", measured, goal, met))
    worst = worst_objective(gradients)
    case = "objective against brute force in float64"
    rows.append((case, f"{worst:.1e}", "1e-6", yes(worst <= 1e-6)))
    return rows + first_calls()


def against_peers(distances: Tensor, turns: int) -> list[Row]:
    similarities = (distances.amax((1, 2), keepdim=True) - distances).numpy()
    methods: dict[str, Callable[[], object]] = {
        "ours": lambda: facility_location(distances=distances, batch_size=128)
    }
    if importlib.util.find_spec("submodlib"):
        from submodlib import FacilityLocationFunction

        functions = [
            FacilityLocationFunction(n=500, mode="dense", sijs=one, separate_rep=False)
            for one in similarities
        ]
        methods["submodlib"] = lambda: [
            function.maximize(budget=128, optimizer="LazyGreedy", show_progress=False)
            for function in functions
        ]
    times = take_turns(methods, turns)
    case = "greedy only, 25 x (500 -> 128)"
    rows = [(case, milliseconds(times["ours"]), "", "")]
    if "submodlib" in times:
        measured = milliseconds(times["submodlib"])
        faster = ratio(times["submodlib"], times["ours"])
        measured = f"{measured}, ours {faster:.1f}x faster"
        rows.append((f"{case}, submodlib LazyGreedy", measured, "25x", yes(faster >= 25)))
    if importlib.util.find_spec("apricot"):
        from apricot import FacilityLocationSelection

        def apricot() -> None:  # one subset of the 25: it takes a second
            FacilityLocationSelection(128, metric="precomputed", optimizer="lazy").fit(
                similarities[0].astype("float64")
            )

        times = take_turns({"ours": methods["ours"], "apricot": apricot}, 3)
        seconds = 25 * statistics.median(times["apricot"])
        faster = 25 * ratio(times["apricot"], times["ours"])
        measured = f"{seconds:.1f} s (25 times one), ours {faster:.0f}x faster"
        rows.append((f"{case}, apricot lazy", measured, "1000x", yes(faster >= 1000)))
    return rows


def on_gpu(turns: int) -> list[Row]:
    gradients = torch.randn(50, 500, 10, device="cuda")
    errors = torch.randn(50, 500, 10, device="cuda").softmax(2)
    inputs = torch.randn(50, 500, 512, device="cuda").relu()
    distances = pairwise_distances(gradients)
    times = take_turns(
        {
            "features to picks": lambda: facility_location(gradients, 128),
            "greedy only": lambda: facility_location(distances=distances, batch_size=128),
            "full last layer": lambda: facility_location(
                distances=last_layer_distances(errors, inputs), batch_size=128
            ),
        },
        turns,
    )
    rows = []
    for name, of in times.items():
        each = 1e3 * statistics.median(of) / 50
        goal, met = ("0.1 ms", yes(each <= 0.1)) if name == "features to picks" else ("", "")
        rows.append((f"{name}, 50 x (500 -> 128)", f"{each:.3f} ms per subset", goal, met))
    return rows


def worst_objective(gradients: Tensor) -> float:
    """Largest relative difference of the sum of Eq. (5) from greedy in float64, gain by gain."""
    worst = 0.0
    for subset in gradients:
        exact = (subset.double()[:, None] - subset.double()).square().sum(2).sqrt()
        nearest = exact.max().expand(len(exact))
        for _ in range(128):
            pick = int((nearest[:, None] - exact).clamp_(min=0).sum(0).argmax())
            nearest = torch.minimum(nearest, exact[pick])
        ours = exact[:, facility_location(subset, 128).indices].amin(1).sum()
        worst = max(worst, abs(float(ours / nearest.sum()) - 1))
    return worst


def first_calls() -> list[Row]:
    in_new_process(FIRST_CALL, CLOCK)
    cached = [in_new_process(FIRST_CALL, CLOCK) for _ in range(5)]
    imported, ready, ours = (statistics.median(part) for part in zip(*cached, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        _, _, compiled = in_new_process(FIRST_CALL, CLOCK, NUMBA_CACHE_DIR=folder)
    whole = imported + ready + ours
    return [
        (
            "first call of a process: kernel from the cache, and picks",
            f"{ours:.3f} s",
            "0.3 s",
            yes(ours <= 0.3),
        ),
        (
            "same, with numba's own start",
            f"{whole:.2f} s: import numba {imported:.2f} s, its registries {ready:.2f} s",
            "",
            "",
        ),
        ("first call on a machine: the kernel is compiled", f"{compiled:.1f} s", "once", ""),
    ]


def in_new_process(code: str, *arguments: str, **environment: str) -> list[float]:
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in result.stdout.split()]


def take_turns(methods: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    clock = getattr(time, CLOCK)
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(turns + 1):
        for name, run in methods.items():
            synchronize()
            start = clock()
            run()
            synchronize()
            if turn > 0:  # the first warms up
                times[name].append(clock() - start)
    return times


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def at_most(case: str, times: list[float], limit: int) -> Row:
    met = yes(1e3 * statistics.median(times) <= limit)
    return case, milliseconds(times), f"{limit} ms", met


def yes(met: bool) -> str:
    return "yes" if met else "no"


def milliseconds(times: list[float]) -> str:
    return f"{1e3 * statistics.median(times):.1f} ms"


def describe_machine(device: str) -> str:
    packages = ["torch", "numba", "submodlib-py", "apricot-select"]
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    if device == "cuda":
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{processor()}, one thread, {torch.backends.cpu.get_cpu_capability()}"
    return f"{machine}; Python {platform.python_version()}, {', '.join(versions)}"


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
