"""Runs of an item are trained once, in pieces, and shared."""

import io
import json
import multiprocessing

import pytest

from crest.lab.paper import reproduce
from crest.lab.run import comparison
from crest.lab.run.results import Results
from crest.report.progress import LineProgress
from toys import let_diverge


def call(out, name="fig8", **options):
    said = io.StringIO()
    options = {"tasks": ["cifar10"], "data_dir": out, "progress": LineProgress(said), **options}
    return reproduce(name, "smoke", out=out, **options), said.getvalue()


def labels(outcome):
    return {label: len(records) for (_, label), records in outcome.records.items()}


def test_runs_are_kept_and_shared_by_items(tmp_path):
    outcome, _ = call(tmp_path, seeds=[0, 1])
    assert labels(outcome) == dict.fromkeys(("Full", "CREST", "Random", "Random, m x 4"), 2)
    assert outcome.left == 0
    records = outcome.records["cifar10", "Random, m x 4"]
    assert [(r["seed"], r["settings"]["batch_size"]) for r in records] == [(0, 64), (1, 64)]
    again, said = call(tmp_path, "fig2", seeds=[0, 1])
    assert said == ""  # nothing to train
    assert labels(again) == dict.fromkeys(("Full", "Random", "CREST"), 2)


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    whole, _ = call(tmp_path / "whole")

    class Impatient(comparison.Checkpoint):
        """Time is up after a hundred steps of a run."""

        asked = 0

        @property
        def time_is_up(self):
            self.asked += 1
            return self.asked > 100

    with monkeypatch.context() as patched:
        patched.setattr(comparison, "Checkpoint", Impatient)
        stopped, _ = call(tmp_path / "pieces")
        assert stopped.left == 4
        assert len(list((tmp_path / "pieces" / "under-way").iterdir())) == 1
        stopped, _ = call(tmp_path / "pieces")
    assert not list((tmp_path / "pieces" / "under-way").iterdir())
    assert stopped.left == 0
    for key, (record,) in whole.records.items():
        (other,) = stopped.records[key]
        assert other["accuracy"] == record["accuracy"]
        assert other["updates"] == record["updates"]


def test_a_diagnostic_that_is_missing_is_measured(tmp_path):
    call(tmp_path, "table3")
    outcome, said = call(tmp_path, "fig9")
    assert said.startswith("1 run(s) to train")
    (record,) = outcome.records["cifar10", "CREST"]
    assert record["diagnostics"]["gradient_error"]
    assert call(tmp_path, "fig7")[1].startswith("1 run(s) to train")
    assert call(tmp_path, "fig9")[1] == ""  # both are in the record now


def test_shards_share_the_runs(tmp_path):
    one, _ = call(tmp_path, shard=(1, 2), seeds=[0])
    assert labels(one) == {"Full": 1, "Random": 1}
    assert (one.left, one.others) == (0, 2)
    assert call(tmp_path, shard=(1, 2), seeds=[0])[1] == ""  # the other half is not its own
    two, _ = call(tmp_path, shard=(2, 2), seeds=[0])
    assert (two.left, two.others) == (0, 0)


def test_a_figure_shows_no_run_without_its_diagnostics(tmp_path):
    call(tmp_path, "table3")
    outcome, _ = call(tmp_path, "fig5", minutes=1e-9)
    assert (labels(outcome), outcome.left) == ({}, 3)


def test_a_run_that_fails_leaves_the_others_to_go_on(tmp_path, monkeypatch):
    let_diverge(monkeypatch, lambda settings: settings.strategy == "full")
    outcome, said = call(tmp_path)
    assert "full, seed 0: failed: losses must be finite" in said
    assert (outcome.failed, outcome.left, outcome.others) == (1, 0, 0)
    assert labels(outcome) == dict.fromkeys(("CREST", "Random", "Random, m x 4"), 1)


def test_what_another_process_trained_meanwhile_is_not_left(tmp_path, monkeypatch):
    class Late(comparison.Checkpoint):
        """Time is up at once, but only once another process has done it all."""

        @property
        def time_is_up(self):
            with monkeypatch.context() as patched:
                patched.setattr(comparison, "Checkpoint", comparison.Checkpoint.__base__)
                call(tmp_path)
            return True

    monkeypatch.setattr(comparison, "Checkpoint", Late)
    outcome, _ = call(tmp_path)
    assert (outcome.left, outcome.others) == (0, 0)
    assert sum(labels(outcome).values()) == 4


def add_records(path, numbers):
    for number in numbers:
        record = dict.fromkeys(("strategy", "equal_time", "steps", "accuracy_gap"), 0)
        record |= {"seed": number, "settings": {"seed": number}, "accuracy": 0.5}
        record |= dict.fromkeys(("seconds", "cost", "overhead", "curve"), 0)
        Results(path).add(record)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "results.json"
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=add_records, args=(path, range(20 * k, 20 * k + 20)))
        for k in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(record["seed"] for record in json.loads(path.read_text())) == list(range(60))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "tabel1"}, ValueError, "item must be one of table1, .* Did you mean table1?"),
        ({"tasks": ["cifar11"]}, ValueError, "task of fig8 must be one of cifar10; got"),
        ({"shard": (3, 2)}, ValueError, "1 <= I <= K; got 3/2"),
        (
            {"name": "table1", "tasks": ["snli"]},
            FileNotFoundError,
            "snli_part needs the files .* Or leave it out: --tasks takes some of cifar10",
        ),
    ],
)
def test_errors_name_what_is_wrong(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path, **options)


def test_an_unknown_scale_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scale must be one of smoke, small, paper; got 'big'"):
        reproduce("fig8", "big", data_dir=tmp_path, out=tmp_path, progress=None)
