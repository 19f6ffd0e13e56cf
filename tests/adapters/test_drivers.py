"""In each framework what is filed belongs to its example, and so does each weight.

`PYTHONPATH=tests python tests/adapters/test_drivers.py` writes the table of docs/frameworks.md.
"""

import importlib
import itertools
from pathlib import Path

import pytest
import torch

import crest
from adapters.drivers import EPOCHS, Case, M, N, Run
from processes import run_on

NEEDS = {"accelerate": "accelerate", "hf_trainer": "transformers", "lightning": "lightning"}
NAMES = {
    "plain": "plain loop",
    "accelerate": "Accelerate",
    "hf_trainer": "Hugging Face Trainer",
    "lightning": "Lightning",
    "ddp": "DistributedDataParallel",
}
FORMS = ("tuple", "dict", "BatchEncoding")

CASES = [
    Case(driver, form, accumulation, workers, world)
    for driver in NAMES
    for world in ((2,) if driver == "ddp" else (1,) if driver == "plain" else (1, 2))
    for form, (accumulation, workers) in itertools.product(FORMS, [(1, 0), (4, 0), (4, 2)])
    if not (driver == "hf_trainer" and form == "tuple")  # its batches are mappings
    if not (workers and form != "dict")  # the workers know nothing of the form
    if not (world > 1 and driver != "ddp" and (workers or form != "dict"))
]


def name(case):
    ending = f" on {case.world}" if case.driver != "ddp" and case.world > 1 else ""
    return (
        f"{case.driver}-{case.form}-accumulation {case.accumulation}-workers {case.workers}{ending}"
    )


def skip_without(case):
    """Imports what is needed, too: once here, and not again in each process."""
    if case.driver in NEEDS:
        pytest.importorskip(NEEDS[case.driver])
        importlib.import_module(f"crest.adapters.{case.driver}")
    if case.form == "BatchEncoding":
        pytest.importorskip("transformers")


STRATEGIES = [crest.RememberedGradients(), crest.GreedyMiniBatch()]


def results(case, strategy):
    run = Run(case, strategy)
    planned = [(batch.indices.tolist(), batch.weights.tolist()) for batch in run.planned]
    seen = list(zip(run.net.ids, run.weights, strict=True))
    known = getattr(run.loader._planner, "_gradients", None)
    return planned, seen, None if known is None else known.values, run.errors()


@pytest.mark.parametrize("case", CASES, ids=name)
def test_what_is_filed_and_each_weight_belong_to_their_example(case):
    skip_without(case)
    check(case)


def check(case):
    for strategy in STRATEGIES:
        answers = run_on(case.world, results, case, strategy)
        planned, world = answers[0][0], len(answers)
        assert all(answer[0] == planned for answer in answers)
        assert len(answers[0][1]) == EPOCHS * N // M // world
        for batch, parts in enumerate(zip(*(seen for _, seen, _, _ in answers), strict=True)):
            indices, weights = planned[batch]
            of_each = [ids for ids, _ in parts]
            assert sorted(itertools.chain(*of_each)) == sorted(indices)
            for rank, (ids, its_weights) in enumerate(parts):
                assert ids == indices[rank::world]
                assert its_weights == pytest.approx(weights[rank::world])
        for _, _, filed, truth in answers:
            if filed is not None:
                torch.testing.assert_close(filed, truth.float(), rtol=1e-4, atol=1e-5)


def table():
    """What works where, as docs/frameworks.md has it."""
    rows = ["| loop | batches | accumulation | workers | processes |", "|---|---|---|---|---|"]
    for driver, label in NAMES.items():
        cases = [case for case in CASES if case.driver == driver]
        cells = [
            ", ".join(dict.fromkeys(str(getattr(case, field)) for case in cases))
            for field in ("form", "accumulation", "workers", "world")
        ]
        rows.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(rows)


PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
BEGIN, END = "<!-- table -->\n", "\n<!-- end of table -->"


def test_the_page_has_the_table_of_these_cases():
    assert PAGE.read_text().split(BEGIN)[1].split(END)[0] == table()


if __name__ == "__main__":
    for one in CASES:
        check(one)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1])
