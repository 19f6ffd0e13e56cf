"""A comparison keeps every finished run and goes on where it was stopped."""

import pytest

from crest.lab.run import comparison
from crest.lab.run.comparison import compare
from crest.lab.run.planning import plan_runs
from crest.lab.run.results import Results
from toys import let_diverge


class Log:
    """Remembers what a comparison says."""

    def __init__(self):
        self.planned, self.begun, self.kept, self.failed, self.steps = [], [], [], [], 0

    def plan(self, steps):
        self.planned.append(list(steps))

    def begin(self, settings, steps):
        self.begun.append((settings.strategy, settings.seed))

    def advance(self, step):
        self.steps += 1

    def finish(self, record, *, kept):
        self.kept.append(kept)

    def fail(self, settings, error):
        self.failed.append((settings.strategy, settings.seed, str(error)))


def train_all(*arguments, **options):
    records, failed = compare(*arguments, **options)
    assert failed == 0
    return records


def make_plan(strategies=("crest", "random", "full"), seeds=(0, 1), **changes):
    options = {"network": "mlp", "epochs": 3, "batch_size": 8, "budget": 0.5, "lr": 0.05}
    return plan_runs("digits", strategies, seeds, **{**options, **changes})


def test_all_runs_are_trained_once_and_kept(data, tmp_path):
    results, log = Results(tmp_path / "results.json"), Log()
    records = train_all(make_plan(), data, results, log)
    assert [(r["seed"], r["strategy"], r["steps"]) for r in records] == [
        (0, "crest", 11), (0, "random", 11), (0, "full", 21),
        (1, "crest", 11), (1, "random", 11), (1, "full", 21),
    ]  # fmt: skip
    assert log.planned == [[11, 11, 21, 11, 11, 21]]
    assert log.steps == 86
    assert all(record["accuracy_gap"] is not None for record in records)

    again = Log()
    assert train_all(make_plan(), data, Results(results.path), again) == records
    assert (again.begun, again.kept) == ([], [True] * 6)


def test_an_interrupted_comparison_goes_on(data, tmp_path, monkeypatch):
    path, train, calls = tmp_path / "results.json", comparison.train, []

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(comparison, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_all(make_plan(), data, Results(path), Log())
    assert len(Results(path).records) == 2
    log = Log()
    assert len(train_all(make_plan(), data, Results(path), log)) == 6
    assert log.begun == [("full", 0), ("crest", 1), ("random", 1), ("full", 1)]


def test_a_run_that_was_under_way_goes_on_from_its_last_save(data, tmp_path, monkeypatch):
    class EveryStep(comparison.Checkpoint):
        is_due = True

    class Interrupted(Log):
        def advance(self, step):
            super().advance(step)
            if self.steps == 8:
                raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "Checkpoint", EveryStep)
    plan, results = make_plan(["crest_paper"], [0]), Results(tmp_path / "results.json")
    both = ["selections", "forgetting"]
    with pytest.raises(KeyboardInterrupt):
        train_all(plan, data, results, Interrupted(), diagnostics=both)
    log = Log()
    (record,) = train_all(plan, data, results, log, diagnostics=both[::-1])
    assert log.steps == 11 - 7  # the eighth step was not saved
    assert not list((tmp_path / "under-way").iterdir())
    (whole,) = train_all(plan, data, Results(tmp_path / "other.json"), Log())
    assert (record["accuracy"], record["updates"]) == (whole["accuracy"], whole["updates"])


def test_a_run_that_diverges_leaves_the_others_to_go_on(data, tmp_path, monkeypatch):
    let_diverge(monkeypatch, lambda settings: (settings.strategy, settings.seed) == ("crest", 0))
    results, log = Results(tmp_path / "results.json"), Log()
    plan = make_plan(["crest", "random"])
    records, failed = compare(plan, data, results, log, time_matched=True)
    assert failed == 1
    assert log.failed == [("crest", 0, "losses must be finite; got nan")]
    assert [(r["strategy"], r["seed"], r["equal_time"]) for r in records] == [
        ("random", 0, False), ("crest", 1, False), ("random", 1, False), ("random", 1, True),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="must be finite"):
        train_all(plan[:1], data, results, Log())


def test_a_run_of_equal_time_that_diverges_is_counted(data, tmp_path, monkeypatch):
    let_diverge(monkeypatch, lambda settings: settings.num_steps is not None)
    plan, log = make_plan(["crest", "random"], [0]), Log()
    records, failed = compare(
        plan, data, Results(tmp_path / "results.json"), log, time_matched=True
    )
    assert (len(records), failed, len(log.failed)) == (2, 1, 1)


def test_what_does_not_fit_is_refused_before_the_first_run(data, tmp_path):
    log = Log()
    plan = make_plan(["random", "crest"], options={"subset_size": 10**6})
    with pytest.raises(ValueError, match="subset_size must be at most the number of examples"):
        train_all(plan, data, Results(tmp_path / "results.json"), log)
    assert log.begun == []


@pytest.mark.parametrize(
    "change", [{"lr": 0.06}, {"budget": 0.4}, {"epochs": 4}, {"options": {"subset_size": 9}}]
)
def test_other_settings_are_trained_anew(data, tmp_path, change):
    results = Results(tmp_path / "results.json")
    train_all(make_plan(["crest"], [0]), data, results, Log())
    log = Log()
    train_all(make_plan(["crest"], [0], **change), data, results, log)
    assert log.begun == [("crest", 0)]
    assert len(results.records) == 2


def test_other_pixels_are_trained_anew(data, tmp_path):
    results, log = Results(tmp_path / "results.json"), Log()
    train_all(make_plan(["random"], [0]), data, results, log)
    data.__dict__.pop("fingerprint")
    data.train_images[0, 0, 0, 0] += 1
    train_all(make_plan(["random"], [0]), data, results, log)
    assert log.begun == [("random", 0)] * 2


@pytest.mark.parametrize("matched", ["crest", "crest_paper", "remembered"])
def test_equal_time_stretches_random_to_the_seconds_of_crest(data, tmp_path, monkeypatch, matched):
    train = comparison.train

    def timed(settings, *arguments, **options):
        record = train(settings, *arguments, **options)
        seconds = {matched: 3.0 + settings.seed, "random": 1.0}[settings.strategy]
        return {**record, "seconds": seconds}

    monkeypatch.setattr(comparison, "train", timed)
    results = Results(tmp_path / "results.json")
    plan = make_plan([matched, "random"])
    records = train_all(plan, data, results, Log(), time_matched=True)
    equal = [record for record in records if record["equal_time"]]
    assert [(record["seed"], record["steps"]) for record in equal] == [(0, 33), (1, 44)]
    assert [record["equal_time"] for record in records[:4]] == [False] * 4

    log = Log()
    assert train_all(plan, data, results, log, time_matched=True) == records
    assert log.begun == []


def test_equal_time_needs_both_strategies(data, tmp_path):
    with pytest.raises(ValueError, match="remembered; the plan has crest"):
        train_all(
            make_plan(["crest"]), data, Results(tmp_path / "r.json"), Log(), time_matched=True
        )


def test_a_run_that_lacks_a_diagnostic_is_trained_again_and_keeps_those_it_had(data, tmp_path):
    results, plan = Results(tmp_path / "results.json"), make_plan(["crest", "random"], [0])
    for diagnostics, begun in [([], 2), (["selections"], 2), ([], 0), (["excluded"], 2)]:
        log = Log()
        records = train_all(plan, data, results, log, diagnostics=diagnostics)
        assert len(log.begun) == len(log.planned[0]) == begun
        assert log.kept == [begun == 0] * 2
    assert [list(record["diagnostics"]) for record in records] == [["selections", "excluded"]] * 2
    assert len(results.records) == 2
    for record in results.records:
        del record["diagnostics"]  # as before there were any
    log = Log()
    train_all(plan[:1], data, results, log, diagnostics=["excluded"])
    assert log.begun == [("crest", 0)]


def test_runs_of_equal_time_are_diagnosed_too(data, tmp_path):
    results = Results(tmp_path / "results.json")
    records = train_all(
        make_plan(["crest", "random"], [0]), data, results, Log(),
        time_matched=True, diagnostics=["selections"],
    )  # fmt: skip
    assert [list(record["diagnostics"]) for record in records] == [["selections"]] * 3


def test_unknown_diagnostics_are_refused_before_the_first_run(data, tmp_path):
    log = Log()
    with pytest.raises(ValueError, match="diagnostic must be one of gradient_error, .*got 'bias'"):
        train_all(make_plan(), data, Results(tmp_path / "r.json"), log, diagnostics=["bias"])
    assert log.planned == []
