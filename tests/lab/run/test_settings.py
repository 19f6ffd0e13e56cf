"""Settings are checked at the door and name a run completely."""

import json

import pytest

import crest
from baselines import make_task
from crest.lab.run.planning import DEFAULTS, plan_runs
from crest.lab.run.settings import VALIDATION_FRACTION, RunSettings, build_strategy


def make(strategy="random", **changes):
    return RunSettings("digits", "mlp", strategy, **changes)


@pytest.mark.parametrize(
    ("budget", "epochs", "expected"), [(0.1, 200, 7800), (0.1, 1, 39), (0.001, 1, 1), (1, 2, 780)]
)
def test_steps_are_the_budget_s_share(budget, epochs, expected):
    assert make(budget=budget, epochs=epochs).count_steps(390) == expected


def test_full_takes_all_steps_whatever_the_budget():
    assert make("full", budget=0.1, epochs=2).count_steps(390) == 780
    assert make("full", budget=0.1) == make("full", budget=0.5)


def test_given_steps_replace_the_budget():
    assert make(num_steps=17).count_steps(390) == 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0.0}, r"budget must be in \(0, 1\], .*got 0.0"),
        ({"budget": 10.0}, r"budget must be in \(0, 1\].*0.1 for 10 %; got 10.0"),
        ({"budget": float("nan")}, "budget must be in"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*63 - 2\]; got -1"),
        ({"epochs": 0}, "epochs must be >= 1 and <= 1000000; got 0"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"lr": 0.0}, "lr must be > 0"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"evaluations": 0}, "evaluations must be >= 1"),
        ({"threads": 0}, r"threads must be in \[1, "),
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"strategy": "crets"}, "Did you mean crest?"),
        ({"strategy_options": {"tau": 1}}, "random must go without options, it has none"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_strategies_take_options():
    assert build_strategy("crest", {"error_threshold": 0.01}) == crest.Crest(error_threshold=0.01)
    with pytest.raises(
        ValueError, match=r"option of crest must be one of .*Did you mean subset_size"
    ):
        build_strategy("crest", {"subset_sice": 3})


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("subset_size", "many", r"int \| None"),
        ("subset_size", 0.5, r"int \| None"),
        ("switch_off", "no", "bool"),
        ("switch_off", 1, "bool"),
        ("num_probes", True, "int"),
        ("betas", 0.9, r"tuple\[float, float\]"),
        ("betas", [0.9, "x"], r"tuple\[float, float\]"),
    ],
)
def test_an_option_of_another_type_is_refused(option, value, wanted):
    with pytest.raises(ValueError, match=f"^{option} must be of type {wanted}; got"):
        build_strategy("crest", {option: value})


def test_whole_numbers_and_lists_fit_where_they_should():
    strategy = build_strategy("crest", {"forward_price": 1, "betas": [0, 0.5], "subset_size": None})
    assert (strategy.advanced.forward_price, strategy.betas) == (1, (0, 0.5))


def test_a_record_holds_every_setting_and_survives_json():
    record = make("crest", strategy_options={"subset_size": 50}).to_record("abc")
    assert json.loads(json.dumps(record)) == record
    assert record["strategy_settings"]["subset_size"] == 50
    assert record["strategy_settings"]["error_threshold"] == crest.Crest().error_threshold
    assert record["data_fingerprint"] == "abc"
    assert record != make("crest").to_record("abc")


def test_runs_are_planned_seed_by_seed_with_defaults_of_the_data():
    plan = plan_runs("digits", ["crest", "full", "crest"], [3, 4, 3], lr=None, epochs=7)
    assert [(run.seed, run.strategy) for run in plan] == [
        (3, "crest"), (3, "full"), (4, "crest"), (4, "full"),
    ]  # fmt: skip
    assert {run.epochs for run in plan} == {7}
    assert {run.lr for run in plan} == {DEFAULTS["digits"]["lr"]}


def test_an_option_goes_to_the_strategies_that_have_it():
    words = list(crest.registered_strategies())
    plan = plan_runs("digits", words, [0], options={"coreset_multiplier": 2})
    options = {run.strategy: dict(run.strategy_options) for run in plan}
    given = {"coreset_multiplier": 2}
    assert options == {word: {} for word in words} | {"crest": given, "crest_paper": given}


def test_crest_paper_is_crest_with_the_settings_of_the_paper():
    assert build_strategy("crest_paper", {}) == crest.Crest.paper()
    assert build_strategy("crest_paper", {"features": "weight"}).features == "weight"


@pytest.mark.parametrize("strategy", ["craig", "grad_match", "glister", "adacore"])
def test_subsets_follow_the_budget_unless_an_option_says_otherwise(strategy):
    assert make(strategy, budget=0.2).make_strategy().subset_fraction == 0.2
    record = make(strategy, budget=0.2).to_record("abc")
    assert record["strategy_settings"]["subset_fraction"] == 0.2
    chosen = make(strategy, budget=0.2, strategy_options={"subset_fraction": 0.3})
    assert chosen.make_strategy().subset_fraction == 0.3
    assert chosen.to_record("abc") != record


def test_glister_looks_ahead_with_the_learning_rate_of_the_run_and_records_what_it_holds_out():
    record = make("glister", lr=0.02).to_record("abc")
    assert record["strategy_settings"]["lr"] == 0.02
    assert record["strategy_settings"]["validation_fraction"] == VALIDATION_FRACTION
    assert json.loads(json.dumps(record)) == record
    assert make("glister", strategy_options={"lr": 0.5}).make_strategy().lr == 0.5


def test_glister_cannot_start_on_nothing():
    with pytest.raises(ValueError, match="must hold at least one example; got an empty one"):
        make("glister").make_strategy().start(make_task())


def test_loss_pruning_is_told_the_steps_of_the_run():
    settings = make("loss_pruning")
    assert settings.make_strategy(num_steps=70).num_steps == 70
    assert "num_steps" not in settings.to_record("abc")["strategy_settings"]
    chosen = make("loss_pruning", strategy_options={"num_steps": 50})
    assert chosen.make_strategy(num_steps=70).num_steps == 50
    assert chosen.to_record("abc")["strategy_settings"]["num_steps"] == 50


def test_the_schedule_of_sgd_dagger_is_that_of_full_training():
    assert make("sgd_dagger", budget=0.1, epochs=20).count_steps(390) == 780
    assert make("sgd_dagger", budget=0.1, epochs=20).count_schedule_steps(390) == 7800
    assert make("random", budget=0.1, epochs=20).count_schedule_steps(390) == 780


def test_an_option_that_no_strategy_has_is_refused():
    with pytest.raises(ValueError, match="Did you mean subset_size?"):
        plan_runs("digits", ["crest", "random"], [0], options={"subset_sizes": 2})
    with pytest.raises(ValueError, match="random, full must go without options"):
        plan_runs("digits", ["random", "full"], [0], options={"subset_size": 2})


def test_planning_refuses_unknown_names():
    with pytest.raises(ValueError, match="data must be one of .*Did you mean digits?"):
        plan_runs("digit", ["crest"], [0])
    with pytest.raises(ValueError, match="strategy must be one of .*got 'best'"):
        plan_runs("digits", ["best"], [0])
