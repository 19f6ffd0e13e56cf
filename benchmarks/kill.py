"""Kill `crest compare digits` at random moments until it is done, and see that nothing is lost.

    python benchmarks/kill.py                     # twenty kills over all strategies; two minutes
    python benchmarks/kill.py --signal int        # Ctrl-C, which saves
    python benchmarks/kill.py --pair              # two processes on one folder, both are killed

The same comparison runs once without a stop. Each kill comes at a random moment of another run: at
its begin, in its midst, or when its record has just been kept. Checked: a run goes on from its last
save; the records are those of the unbroken comparison in all but the seconds; no file is left but
the results and the figure.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import crest
import crest.cli
from crest.lab.data.datasets import load_dataset
from crest.lab.run import comparison
from crest.strategies import registered_strategies

Run = tuple[str, str]  # strategy and seed
Event = tuple[str, str, str, int]  # strategy, seed, what, step

CLOCKS = ("seconds", "forward_price")  # all that may differ between two runs


class Logged(comparison.Checkpoint):
    """Saves often, and writes down what it does, also to tell how far a killed process was."""

    log = Path()
    every_seconds = 0.0

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **{**options, "every_seconds": self.every_seconds})
        self.run = json.loads(options["run"])[0]

    def note(self, *words: object) -> None:
        """Write a line, which outlives the process."""
        with self.log.open("a") as file:
            file.write(" ".join(map(str, (self.run["strategy"], self.run["seed"], *words))) + "\n")

    def save(self, state: dict[str, Any]) -> None:
        """Note it before and after."""
        self.note("saves", state["step"])
        super().save(state)
        self.note("saved", state["step"])

    def load(self) -> dict[str, Any] | None:
        """Note where the run goes on."""
        state = super().load()
        self.note("begins", 0 if state is None else state["step"])
        return state

    def remove(self) -> None:
        """Note that the record is kept."""
        self.note("kept", 0)
        super().remove()


def start(words: list[str], log: Path, every_seconds: float) -> int:
    """Begin `crest compare` in a process of its own, which has imported all; return its id."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    Logged.log, Logged.every_seconds = log, every_seconds
    comparison.Checkpoint = Logged  # type: ignore[misc]
    with (log.parent / "said.txt").open("a") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        status = 1
        try:
            status = crest.cli.main(words)
        finally:
            said.flush()
            os._exit(status)


def end(child: int) -> int:
    """Wait for a process, and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def events(log: Path, after: int = 0) -> list[Event]:
    """Read what the processes wrote down after so many bytes: strategy, seed, what, step."""
    with log.open("rb") as file:
        file.seek(after)
        lines = [line.decode().split() for line in file if line.endswith(b"\n")]
    return [(line[0], line[1], line[2], int(line[3])) for line in lines]


def wait_for_a_moment(log: Path, child: int, targets: set[Run], chance: random.Random) -> None:
    """Wait until one of the runs is at a random step, or has just been kept."""
    after, step = log.stat().st_size, chance.choice([0, 1, chance.randrange(60), 10**9])
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        new = [event for event in events(log, after) if event[:2] in targets]
        if any(step <= at or what == "kept" for _, _, what, at in new):
            time.sleep(0.02 * chance.random())
            return
        time.sleep(0.003)


def check_going_on(found: list[Event]) -> list[str]:
    """See that each run begins where it was saved last, and that one process trains it."""
    faults, saved, saving = [], Counter[Run](), Counter[Run]()
    for strategy, seed, what, step in found:
        run = strategy, seed
        if what == "saves":
            if step <= saving[run]:
                faults.append(f"{strategy}, seed {seed} was trained by two at step {step}")
            saving[run] = step
        elif what == "saved":
            saved[run] = step
        elif what == "begins":
            if step not in (saved[run], saving[run]):
                faults.append(
                    f"{strategy}, seed {seed} began at {step}; saved were {saved[run]}, and "
                    f"{saving[run]} was under way"
                )
            saved[run] = saving[run] = step  # even if the process ended before it said so
    return faults


def timeless(value: Any) -> Any:
    """Everything but the clock."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if key not in CLOCKS}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def records(out: Path) -> dict[str, Any]:
    """Read the results, in any order."""
    found = json.loads((out / "results.json").read_text())
    return {f"{record['strategy']}, seed {record['seed']}": timeless(record) for record in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="at most one for each run")
    parser.add_argument("--strategies", default=",".join(registered_strategies()))
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--epochs", default="12")
    parser.add_argument("--signal", choices=["kill", "int", "term"], default="kill")
    parser.add_argument("--every-seconds", type=float, default=0.0, help="between two saves")
    parser.add_argument("--pair", action="store_true", help="two processes on one folder")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    chosen = parser.parse_args()
    strategies, seeds = chosen.strategies.split(","), chosen.seeds.split(",")
    number = getattr(signal, f"SIG{chosen.signal.upper()}")
    chance = random.Random(chosen.seed)
    torch.set_num_threads(1)
    load_dataset("digits", Path())  # and all that this imports, so that each start is quick
    crest.facility_location(torch.rand(8, 2), 2)
    torch.optim.SGD([torch.zeros(1)])
    import matplotlib.figure  # noqa: F401

    folder = Path(tempfile.mkdtemp(prefix="crest-kill-"))
    words = ["compare", "digits", "--network", "mlp", "--epochs", chosen.epochs, "--threads", "1"]
    words += ["--seeds", chosen.seeds, "--strategies", chosen.strategies, "--evaluations", "3"]
    whole, out, log = folder / "whole", folder / "killed", folder / "log.txt"
    log.touch()
    began = time.monotonic()
    assert end(start([*words, "--out", str(whole)], folder / "whole.txt", 1e9)) == 0
    print(f"unbroken: {time.monotonic() - began:.1f} s, {len(records(whole))} records")

    kills, faults, moments = 0, [], Counter[str]()
    runs = [(one, seed) for seed in seeds for one in strategies]
    targets = set(chance.sample(runs, min(chosen.kills, len(runs))))
    while True:
        options = [*words, "--out", str(out)]
        children = [start(options, log, chosen.every_seconds) for _ in range(1 + chosen.pair)]
        if targets:
            wait_for_a_moment(log, children[0], targets, chance)
            for child in children:
                os.kill(child, number)
        statuses = [end(child) for child in children]
        if all(status == 0 for status in statuses):
            break
        expected = -signal.SIGKILL if chosen.signal == "kill" else 130
        faults += [f"exit status {status}" for status in statuses if status not in (0, expected)]
        if len(faults) > 10:
            break
        kills += 1
        found = events(log)
        strategy, seed, what, step = found[-1]
        targets -= {event[:2] for event in found if event[2] == "kept"} | {(strategy, seed)}
        pieces = sorted(path.name for path in (out / "under-way").glob("*"))
        pieces += sorted(path.name for path in out.glob(".*"))
        moments[what] += 1
        print(f"{kills:3}. {strategy}, seed {seed}: {what} {step}; there: {', '.join(pieces)}")
    found = events(log)
    faults += check_going_on(found)
    one, other = records(whole), records(out)
    faults += [f"{name} differs" for name in one if one[name] != other.get(name)]
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    if names != ["comparison.png", "results.json"]:
        faults.append(f"files left: {', '.join(names)}")
    resumed = sum(what == "begins" and step > 0 for _, _, what, step in found)
    print(f"{kills} kills, after {dict(moments)}; {resumed} times a run went on from a save")
    print(f"{len(other)} records, {len(one)} expected; files: {', '.join(names)}")
    print("\n".join(faults) or "nothing lost")
    if not faults:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
