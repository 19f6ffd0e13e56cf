"""One registry of strategies: words, what they need, and nothing about them elsewhere."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.cli import main
from crest.lab.run.settings import RunSettings
from crest.strategies import registry
from crest.strategies.protocol import LearnsFromTraining, RemembersGradients
from crest.strategies.registry import Paper, find_strategy, make_strategy, word_of
from toys import CRITERION, make_loader, make_model, make_tensors, train

SOURCE = Path(crest.__file__).parent
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_strategy.py"
WORDS = list(crest.registered_strategies())

words = pytest.mark.parametrize("word", WORDS)


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is forgotten when it ends."""
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))


def make_object(word, **fields):
    """The strategy as a user would write it, with held-out examples if it needs them."""
    entry = find_strategy(word)
    if entry.needs_validation:
        held_out = TensorDataset(*make_tensors(40, seed=1))
        fields["validation_loader"] = DataLoader(held_out, batch_size=20)
    return entry.make(**fields)


def batches_of(loader):
    return [
        (planned.indices.tolist(), planned.weights.tolist()) for planned, _ in loader.preview(5)
    ]


def test_words_stay():
    assert set(WORDS) == {
        *("crest", "crest_paper", "greedy", "craig", "grad_match", "glister", "adacore"),
        *("loss_pruning", "selective_backprop", "remembered", "random", "sgd_dagger", "full"),
        "online",
    }


@words
def test_a_word_gives_the_batches_of_the_object(word):
    if find_strategy(word).needs_validation:
        with pytest.raises(
            ValueError,
            match=rf"validation loader; got '{word}'. Write strategy=crest.Glister\(validation_l",
        ):
            make_loader(word)
        return
    assert batches_of(make_loader(word)) == batches_of(make_loader(make_object(word)))


def test_a_subset_by_word_is_as_large_as_the_budget():
    loader = make_loader("craig", budget=0.2)
    assert repr(loader).count("subset_fraction=0.2") == 1
    assert make_strategy("craig", budget=0.2) == crest.Craig(subset_fraction=0.2)


def test_a_wrong_budget_is_named_whatever_the_word():
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\]"):
        make_loader("craig", budget=7)


def test_an_unknown_word_is_refused_with_the_closest():
    with pytest.raises(ValueError, match="strategy must be one of .*Did you mean greedy?"):
        make_loader("gredy")
    with pytest.raises(ValueError, match="strategy must be one of .*Did you mean crest?"):
        make_loader("CREST")


@words
def test_strategies_need_what_they_register(word):
    entry = find_strategy(word)
    model = make_model()
    loader = make_loader(make_object(word), model=model, budget=1)
    assert ("losses" in entry.needs) >= isinstance(loader._planner, LearnsFromTraining)
    assert ("outputs" in entry.needs) is isinstance(loader._planner, RemembersGradients)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for inputs, targets, weights in loader:
        outputs = model(inputs)
        losses = CRITERION(outputs, targets)
        loader.observe(losses, outputs)
        optimizer.zero_grad()
        crest.weighted_mean(losses, weights).backward()
        optimizer.step()
    assert ("passes" in entry.needs) is (loader.history.cost > loader.history.steps)
    assert ("lr" in entry.needs) is ("lr" in entry.follows.values())


@words
def test_every_entry_is_complete(word):
    entry = find_strategy(word)
    assert re.fullmatch(r"[A-Z].*[^.]", entry.line)
    assert word_of(entry.make) == word
    assert set(entry.follows) <= set(entry.fields)
    if entry.paper is not None:
        assert re.fullmatch(r"[A-Z]\w+( et al\.)?, \w+ 20[12]\d", entry.paper.short)


def mine(**options):
    """Register a strategy of a user's own."""

    @crest.register_strategy("mine", **options)
    @dataclasses.dataclass(frozen=True)
    class Mine:
        """Random batches, as they come.

        And more.
        """

        share: float = 0.5
        num_steps: int | None = None

        def start(self, task):
            return crest.Random().start(task)

    return Mine


def test_an_own_strategy_registers_in_one_line_and_is_used_by_word(registered):
    cls = mine()
    entry = crest.registered_strategies()["mine"]
    assert (entry.line, entry.needs, entry.is_baseline) == (
        "Random batches, as they come",
        (),
        False,
    )
    loader = make_loader("mine")
    assert "Mine(share=0.5" in repr(loader)
    train(loader, make_model())
    settings = RunSettings("digits", "mlp", "mine", strategy_options={"share": 0.1})
    assert settings.make_strategy() == cls(share=0.1)


def test_fields_of_an_own_strategy_follow_the_run(registered):
    cls = mine(follows={"share": "budget", "num_steps": "num_steps"})
    settings = RunSettings("digits", "mlp", "mine", budget=0.3)
    assert settings.make_strategy(num_steps=9) == cls(share=0.3, num_steps=9)
    assert settings.to_record("abc")["strategy_settings"] == {"share": 0.3}
    assert make_loader("mine", budget=0.25)._options.strategy == cls(share=0.25)


def test_a_budget_of_one_and_the_whole_schedule_are_what_an_entry_says(registered):
    mine(takes_all_steps=True, compresses_schedule=False)
    settings = RunSettings("digits", "mlp", "mine", budget=0.1, epochs=3, num_steps=5)
    assert settings.budget == 1
    assert settings.count_schedule_steps(10) == 30


def test_the_same_class_may_register_again_and_another_may_not(registered):
    mine(line="one")
    mine(line="two")  # as a cell or a file that is run again
    assert find_strategy("mine").line == "two"
    with pytest.raises(ValueError, match="got 'mine', which is .*Mine"):
        crest.register_strategy("mine")(crest.Random)


class Plain:
    def start(self, task):
        raise NotImplementedError


@dataclasses.dataclass
class Asks:
    share: float

    def start(self, task):
        raise NotImplementedError


@dataclasses.dataclass
class NoStart:
    pass


@pytest.mark.parametrize(
    ("register", "error", "message"),
    [
        (lambda: crest.register_strategy(Asks), TypeError, r"Write register_strategy\(\"word\"\)"),
        (lambda: crest.register_strategy("My Own"), ValueError, "small letters.*got 'My Own'"),
        (lambda: crest.register_strategy("a,b"), ValueError, "small letters"),
        (lambda: crest.register_strategy("x", needs=("loss",)), ValueError, "mean losses?"),
        (lambda: crest.register_strategy("x", needs="losses"), TypeError, "needs must be a tuple"),
        (lambda: crest.register_strategy("x", line=3), TypeError, "line must be a string; got 3"),
        (lambda: crest.register_strategy("x", paper="me"), TypeError, "paper must be a Paper"),
        (lambda: crest.register_strategy("x", style="red"), TypeError, "style must be a colour"),
        (lambda: crest.register_strategy("x", is_baseline=2), TypeError, "is_baseline must be"),
        (lambda: crest.register_strategy("x")(Plain), TypeError, "must be a dataclass"),
        (lambda: crest.register_strategy("x")(lambda: 3), TypeError, "must be a dataclass"),
        (lambda: crest.register_strategy("x")(3), TypeError, "must be a dataclass.*got 3"),
        (lambda: crest.register_strategy("x")(NoStart), TypeError, "NoStart has none"),
        (lambda: crest.register_strategy("x")(Asks), TypeError, "Asks asks for share"),
        (
            lambda: crest.register_strategy("x", follows={"shar": "budget"})(crest.Craig),
            ValueError,
            "field of Craig in follows must be one of .*got 'shar'",
        ),
        (
            lambda: crest.register_strategy("x", follows={"lr": "rate"})(crest.Full),
            ValueError,
            "field of Full in follows",
        ),
    ],
)
def test_what_cannot_be_registered_is_refused(registered, register, error, message):
    with pytest.raises(error, match=message):
        register()
    assert list(crest.registered_strategies()) == WORDS


def test_what_was_not_registered_has_no_word():
    with pytest.raises(ValueError, match="Plain must be registered"):
        word_of(Plain)


def test_a_paper_of_one_author_stands_alone():
    assert Paper("Title", "Doe", "ICML", 2020).short == "Doe, ICML 2020"


def test_the_example_is_short_and_runs():
    assert len(EXAMPLE.read_text().splitlines()) < 50
    run = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.fixture
def imports_anew(registered, monkeypatch):
    """Modules and their search path are as before when the test ends."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop(EXAMPLE.stem, None)


def test_the_command_line_knows_the_example(imports_anew, tmp_path, capsys):
    words = f"compare digits --network mlp --epochs 1 --seeds 0 --import {EXAMPLE} --out {tmp_path}"
    words = [*words.split(), "--strategies", "large_losses,random", "--time-matched"]
    assert main([*words, "--option", "share=0.4"]) == 0
    shown = capsys.readouterr().out
    assert "\nlarge_losses " in shown
    assert "large_losses minus random is" in shown
    assert "\nrandom, equal time " in shown
    assert main([*words, "--option", "share=0.4"]) == 0
    assert capsys.readouterr().err.count("kept from an earlier call") == 3


def test_the_command_lists_all_of_them(imports_anew, capsys):
    assert main(["strategies", "--import", str(EXAMPLE)]) == 0
    shown = capsys.readouterr().out
    for word in (*WORDS, "large_losses"):
        assert re.search(rf"^{word} ", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 160


def test_a_file_that_cannot_be_imported_is_named(imports_anew, tmp_path, capsys):
    for name, code, message in [
        ("broken", "import nothing_of_that_name", "ModuleNotFoundError: No module named"),
        ("random", "", "a module random is there already; rename the file"),
    ]:
        (tmp_path / f"{name}.py").write_text(code)
        assert main(["strategies", "--import", str(tmp_path / f"{name}.py")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("crest: error: --import ")
        assert message in line


def test_a_module_is_imported_by_name(imports_anew, tmp_path, capsys, monkeypatch):
    (tmp_path / "own_strategy.py").write_text(EXAMPLE.read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["strategies", "--import", "own_strategy", "--markdown"]) == 0
    assert "| `large_losses` |" in capsys.readouterr().out


def strings_of(path):
    """String constants of a file, but docstrings and the names of `__all__`."""
    tree = ast.parse(path.read_text())
    passed_over = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            passed_over.add(node.value)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            passed_over.update(ast.walk(node))
    constants = {node for node in ast.walk(tree) if isinstance(node, ast.Constant)} - passed_over
    return [node.value for node in constants if isinstance(node.value, str)]


def named_in(text):
    """Words that stand alone or in a list; within a sentence, those that are no English."""
    english = {"crest", "greedy", "random", "full", "remembered"}
    parts = {text, *(part.strip() for part in text.split(",") if "," in text)}
    within = {word for word in set(WORDS) - english if re.search(rf"(?<!\w){word}(?!\w)", text)}
    return parts & set(WORDS) | within


def test_a_word_stands_in_its_own_file_and_the_registry_alone():
    own = {}
    for word, entry in crest.registered_strategies().items():
        path = Path(sys.modules[entry.settings.__module__].__file__)
        own.setdefault(path, set()).add(word)
    found = {
        path: set().union(*map(named_in, strings_of(path)))
        for path in SOURCE.rglob("*.py")
        if path.parent.name != "adapters"  # which name settings of others
    }
    elsewhere = {path: words - own.get(path, set()) for path, words in found.items()}
    assert {path: words for path, words in elsewhere.items() if words} == {}
    assert set().union(*found.values()) == set(WORDS)  # so that the test sees something
