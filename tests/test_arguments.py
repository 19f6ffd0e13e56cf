"""Every public argument takes what it can use, and names itself where it refuses.

Arguments are found by signature, so that a new one is tested by itself. A value that is not refused
must work: a loader then trains for two steps.
"""

import copy
import dataclasses
import inspect
import io
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest import diagnostics
from crest.cli import main
from crest.lab.run import settings as run_settings
from crest.selection import last_layer_distances, pairwise_distances
from crest.selection.matching_pursuit import matching_pursuit

N, M = 48, 4
CRITERION = nn.CrossEntropyLoss(reduction="none")
VALUES = {
    "None": None,
    "True": True,
    "0": 0,
    "-1": -1,
    "-0.5": -0.5,
    "2.5": 2.5,
    "nan": math.nan,
    "inf": float("1e999"),
    "-inf": -math.inf,
    "2**64": 2**64,
    "10**400": 10**400,
    "1e300": 1e300,
    "1e-300": 1e-300,
    "a word": "nonsense",
    "a list": [1, "x"],
    "a dict": {"version": 3},
    "an object": object(),
    "a dtype": torch.float32,
    "NumPy 5": np.int64(5),
    "NumPy 0.5": np.float32(0.5),
    "NumPy True": np.bool_(True),
    "tensor 5": torch.tensor(5),
    "tensor 0.5": torch.tensor(0.5),
    "tensor nan": torch.tensor(math.nan),
    "four dimensions": torch.ones(2, 3, 4, 5),
    "no entries": torch.empty(0),
    "an array": np.ones(3),
}


def make_data(n=N):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 3, generator=generator)
    return TensorDataset(inputs, (inputs.sum(1) > 0).long())


def arguments(strategy=None, **changes):
    torch.manual_seed(0)
    return {
        "train_loader": DataLoader(make_data(), batch_size=M, shuffle=True),
        "model": nn.Linear(3, 2),
        "loss_fn": CRITERION,
        "strategy": crest.Random() if strategy is None else strategy,
        "budget": 1,
        **changes,
    }


def train(given, tried=None):
    """Two steps, with all that a loop can tell; what is handed out must be usable.

    Where the value that is tried is a number of NumPy or torch, its checkpoint must be loadable.
    """
    loader = crest.CoresetLoader(**given)
    steps = 2 * min(loader._options.accumulation_steps, 10)
    model = given["model"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _, batch in zip(range(steps), loader, strict=False):
        inputs, targets, weights = batch
        outputs = model(inputs)
        losses = CRITERION(outputs, targets)
        loader.observe(losses, outputs)
        optimizer.zero_grad()
        crest.weighted_mean(losses, weights).backward()
        optimizer.step()
        assert weights.isfinite().all()
        assert len(weights) == len(losses)
    if isinstance(tried, (np.generic, torch.Tensor)):
        saved = io.BytesIO()
        torch.save(loader.state_dict(), saved)
        saved.seek(0)
        torch.load(saved, weights_only=True)
    return loader


def complaint(call, *names):
    """Nothing if the call works or is refused by name; else what came instead."""
    try:
        call()
    except (TypeError, ValueError) as error:
        told = str(error).replace("_", " ")
        if any(name.replace("_", " ") in told for name in names) and re.search("must|need", told):
            return None
        return repr(error)
    except Exception as error:  # no other kind is a refusal
        return repr(error)
    return None


def takes_or_refuses(name, call, *others):
    """Try every value in place of an argument, which is named `name` or as `others` say."""
    found = {what: complaint(lambda v=v: call(v), name, *others) for what, v in VALUES.items()}
    assert not {what: told for what, told in found.items() if told}


def names_of(function):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind not in kinds]


@pytest.mark.parametrize("name", names_of(crest.CoresetLoader))
def test_the_loader(name):
    takes_or_refuses(name, lambda value: train(arguments(**{name: value}), value))


STRATEGIES = [value for value in vars(crest).values() if hasattr(value, "start")]
NEEDED = {crest.Glister: {"validation_loader": DataLoader(make_data(8), batch_size=4)}}
FIELDS = [(strategy, name) for strategy in STRATEGIES for name in names_of(strategy)]


@pytest.mark.parametrize(
    ("strategy", "name"), FIELDS, ids=[f"{strategy.__name__}-{name}" for strategy, name in FIELDS]
)
def test_strategies(strategy, name):
    needed = NEEDED.get(strategy, {})
    takes_or_refuses(
        name, lambda value: train(arguments(strategy(**{**needed, name: value})), value)
    )


@pytest.mark.parametrize("name", names_of(crest.CrestAdvanced))
def test_advanced_settings(name):
    def call(value):
        group = crest.CrestAdvanced(**{name: value})
        return train(arguments(crest.Crest.paper(subset_size=8, advanced=group)), value)

    takes_or_refuses(name, call)


@pytest.mark.parametrize("name", names_of(crest.Look))
def test_looks(name):
    strategy = crest.Crest(subset_size=8, switch_off=False)
    takes_or_refuses(
        name, lambda value: train(arguments(strategy, look=crest.Look(**{name: value})))
    )


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", names_of(crest.doctor))
def test_the_doctor(name):
    given = {"loader": crest.CoresetLoader(**arguments())}
    takes_or_refuses(name, lambda value: crest.doctor(**{**given, name: value}))


@pytest.mark.parametrize("kind", [crest.JsonLines, crest.TensorBoard, crest.WandB, crest.MLflow])
def test_trackers(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (name,) = names_of(kind)
    takes_or_refuses(name, kind)


SELECTIONS = diagnostics.Selections(4)
SELECTIONS.observe(torch.tensor([1, 2]))
CALLS = {
    "facility_location": (
        crest.facility_location,
        {"gradients": rows(6, 2), "batch_size": 2, "method": "stochastic"},
    ),
    "facility_location of distances": (
        crest.facility_location,
        {"distances": pairwise_distances(rows(2, 6, 2)), "batch_size": 2},
    ),
    "matching_pursuit": (
        matching_pursuit,
        {"gradients": rows(6, 2), "size": 2, "inputs": rows(6, 3)},
    ),
    "last_layer_distances": (
        last_layer_distances,
        {"errors": rows(6, 2), "inputs": rows(6, 3)},
    ),
    "pairwise_distances": (pairwise_distances, {"features": rows(6, 2)}),
    "weighted_mean": (crest.weighted_mean, {"losses": rows(3), "weights": torch.ones(3)}),
    "excluded_accuracy": (
        diagnostics.excluded_accuracy,
        {"active": torch.tensor([True, False]), "correct": torch.tensor([True, True])},
    ),
    "loss_model_errors": (diagnostics.loss_model_errors, {}),
    "Selections": (diagnostics.Selections, {}),
    "Selections.observe": (
        diagnostics.Selections(4).observe,
        {"indices": torch.tensor([1, 3])},
    ),
    "Selections.close_period": (copy.deepcopy(SELECTIONS).close_period, {}),
    "Forgetting": (diagnostics.Forgetting, {}),
    "Forgetting.observe": (
        diagnostics.Forgetting(4).observe,
        {"indices": torch.tensor([1, 3]), "correct": torch.tensor([True, False])},
    ),
    "Forgetting.of_selected": (diagnostics.Forgetting(4).of_selected, {}),
    "Forgetting.histogram": (diagnostics.Forgetting(4).histogram, {}),
}
CASES = [(call, name) for call, (function, _) in CALLS.items() for name in names_of(function)]


@pytest.mark.parametrize(("call", "name"), CASES, ids="-".join)
def test_functions(call, name):
    function, given = CALLS[call]
    takes_or_refuses(name, lambda value: function(**{**given, name: value}))


METHODS = {
    "preview": {"count": 1},
    "read": {"batches": [torch.tensor([0, 1])], "seed": 0},
    "observe": {},
    "set_epoch": {"epoch": 0},
    "examples": {},
}
METHOD_CASES = [
    (method, name)
    for method in METHODS
    for name in names_of(getattr(crest.CoresetLoader, method))
    if name != "self"
]


@pytest.mark.parametrize(("method", "name"), METHOD_CASES, ids="-".join)
def test_methods_of_the_loader(method, name):
    given = arguments(crest.RememberedGradients())
    loader = crest.CoresetLoader(**given)
    inputs, targets, _ = next(iter(loader))

    def call(value):
        known = dict(METHODS[method])
        if method == "observe":
            outputs = given["model"](inputs)
            known = {"losses": CRITERION(outputs, targets), "outputs": outputs}
        return list(getattr(loader, method)(**{**known, name: value}) or [])

    takes_or_refuses(name, call)


@pytest.mark.parametrize("name", names_of(crest.CoresetLoader.report)[1:])
def test_the_report(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loader = crest.CoresetLoader(**arguments())
    takes_or_refuses(name, lambda value: loader.report(**{"folder": "here", name: value}))


@pytest.mark.parametrize("name", names_of(diagnostics.measure_gradient_error))
def test_the_gradient_error(name):
    given = {"loader": crest.CoresetLoader(**arguments()), "num_batches": 1, "num_examples": 8}
    takes_or_refuses(
        name, lambda value: diagnostics.measure_gradient_error(**{**given, name: value})
    )


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(run_settings.RunSettings)]
)
def test_settings_of_a_run(name):
    given = {"data": "digits", "network": "resnet8", "strategy": "random"}
    takes_or_refuses(
        name,
        lambda value: run_settings.RunSettings(**{**given, name: value}),
        "got 'version'",  # the option, where options are given
    )


OPTIONS = [
    (strategy, option)
    for strategy, entry in crest.registered_strategies().items()
    for option in entry.option_types
]


@pytest.mark.parametrize(("strategy", "option"), OPTIONS, ids="-".join)
def test_options_of_a_run(strategy, option):
    takes_or_refuses(option, lambda value: run_settings.build_strategy(strategy, {option: value}))


@pytest.mark.parametrize(
    "option",
    [
        "error_threshold=1e999",
        "betas=(0.9,1e999)",
        "subset_size=0",
        "subset_size=0.5",
        "min_pool=-3",
    ],
)
def test_a_bad_option_on_the_command_line_is_one_plain_line(option, tmp_path, capsys):
    words = ["run", "digits", "--strategy", "crest", "--option", option, "--out", str(tmp_path)]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.startswith(f"crest: error: {option.split('=')[0]} must be")


STATES = {
    "loader": lambda: train(arguments(crest.Crest(subset_size=8, switch_off=False))),
    "Selections": lambda: copy.deepcopy(SELECTIONS),
    "Forgetting": lambda: diagnostics.Forgetting(4),
}


@pytest.mark.parametrize("kind", STATES)
def test_what_is_no_state_is_refused(kind):
    target = STATES[kind]()
    takes_or_refuses("state", target.load_state_dict)
    for value in VALUES.values():
        with pytest.raises((TypeError, ValueError), match="state must"):
            target.load_state_dict(value)


@pytest.mark.parametrize("kind", STATES)
def test_damaged_states_are_refused(kind):
    """Each entry, and those of the dicts within, left out or of a wrong kind."""
    target = STATES[kind]()
    whole = target.state_dict()
    within = [
        (key, inner) for key in ("region", "examples", "history") for inner in whole.get(key, ())
    ]
    for path in [*((key,) for key in whole), *within]:
        for bad in ("left out", None, "nonsense", object(), -1):
            state = copy.deepcopy(whole)
            entries = state[path[0]] if len(path) > 1 else state
            del entries[path[-1]]
            if bad != "left out":
                entries[path[-1]] = bad
            with pytest.raises((TypeError, ValueError), match="must (be|have)"):
                target.load_state_dict(state)
    target.load_state_dict(whole)


@pytest.mark.parametrize("strategy", [crest.Crest(subset_size=8), crest.LossPruning()], ids=repr)
def test_a_damaged_state_of_the_strategy_is_refused(strategy):
    loader = train(arguments(strategy))
    with pytest.raises(ValueError, match=r"what CoresetLoader\.state_dict\(\) returned for this"):
        loader.load_state_dict({**loader.state_dict(), "planner": {"left": [1]}})


@pytest.mark.parametrize("key", ["position", "total"])
def test_a_negative_position_is_refused(key):
    loader = STATES["loader"]()
    with pytest.raises(ValueError, match=f"{key} of the state must be >= 0; got -1"):
        loader.load_state_dict({**loader.state_dict(), key: -1})


def test_numbers_of_numpy_and_torch_are_kept_as_pythons_own():
    strategy = crest.Crest(
        subset_size=np.int64(8),
        loss_threshold=torch.tensor(0.5),
        betas=[np.float64(0.5), 0],
        advanced=crest.CrestAdvanced(forward_price=np.float32(0.25)),
    )
    assert type(strategy.subset_size) is int
    assert type(strategy.loss_threshold) is float
    assert strategy.betas == (0.5, 0)
    assert type(strategy.betas[0]) is float
    assert type(strategy.advanced.forward_price) is float
    train(arguments(strategy, budget=np.float64(1), seed=torch.tensor(3)), np.float64(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: crest.LossPruning(num_steps=2.5), "num_steps must be an integer >= 1.*got 2.5"),
        (lambda: crest.Crest(exclusion_interval=2.5), "exclusion_interval must be an integer"),
        (lambda: crest.Crest(interval_multiplier=math.inf), "interval_multiplier must be > 0 and"),
        (lambda: crest.SelectiveBackprop(exponent=math.nan), "exponent must be >= 0 and finite"),
        (lambda: crest.SelectiveBackprop(exponent=math.inf), "exponent must be >= 0 and finite"),
        (lambda: crest.Look(dtype=torch.int64), "dtype must be a floating-point dtype"),
        (lambda: crest.CoresetLoader(**arguments()).preview(0), "count must be >= 1"),
        (lambda: crest.CoresetLoader(**arguments()).preview(-1), "count must be >= 1"),
        (lambda: crest.weighted_mean(torch.empty(0), torch.empty(0)), "losses must .*one at least"),
        (lambda: crest.Crest(advanced=crest.CrestAdvanced(min_pool=0)), "min_pool must be >= 1"),
    ],
    ids=[*"abcdefghij"],
)
def test_what_was_silent_is_refused(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_moved_fields_are_no_fields_of_crest():
    with pytest.raises(TypeError, match="num_probes"):
        crest.Crest(num_probes=4)
