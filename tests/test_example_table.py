"""The table of examples: every strategy, every form, and what it says where it knows nothing."""

import csv
import importlib.util
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest import example_table
from crest.example_table import COLUMNS, as_frame, write_table
from strategies.test_online import make_data
from toys import make_loader, make_model, train

SEEN = ["num_observations", "observed"]


@pytest.mark.parametrize(
    "strategy",
    [
        crest.Random(),
        crest.Full(),
        crest.GreedyMiniBatch(subset_size=64),
        crest.Crest(subset_size=64, switch_off=False),
        crest.Craig(),
        crest.LossPruning(),
        crest.RememberedGradients(),
        crest.OnlineSelection(),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
@pytest.mark.parametrize("record", [False, True], ids=["off", "recorded"])
def test_times_are_those_of_the_batches_handed_out(strategy, record):
    model = make_model()
    loader = make_loader(strategy, model=model, budget=1, record=record)
    counts = torch.zeros(400, dtype=torch.int64)
    train(
        loader,
        model,
        epochs=3,
        on_step=lambda *_: counts.index_add_(
            0, loader.handed_out.indices, torch.ones(len(loader.handed_out.indices)).long()
        ),
    )
    table = loader.examples()
    assert list(table) == list(COLUMNS)
    assert list(table["times_trained"]) == counts.tolist()
    selected = sum(
        min(region["length"], loader.history.steps - region["step"])
        for region in loader.history.records
        if region.get("selected", region.get("updated"))
    )
    share = sum(table["times_selected"]) / sum(table["times_trained"])
    assert share == pytest.approx(selected / loader.history.steps, abs=0.02)
    if record:
        assert all(table["num_observations"] == table["times_trained"])
    for name in ("label_score", "mistakenness", "aum"):
        known = ~np.isnan(np.asarray(table[name]))
        assert not (known & ~np.asarray(table["observed"])).any()
        assert known.any() or not record
    scores = np.asarray(table["label_score"])[np.asarray(table["observed"])]
    assert ((scores >= 0) & (scores <= 1) | np.isnan(scores)).all()


def test_what_the_strategy_knows_is_listed_without_a_record():
    model = make_model()
    told = make_loader(crest.OnlineSelection(), model=model, budget=1)
    train(told, model, epochs=2)
    table = told.examples()
    assert all(table["observed"])
    assert set(table["predicted_label"]) <= set(range(5))
    assert all(table["forgotten"] == -1)
    assert np.isfinite(np.asarray(table["smoothed_loss"])).all()


def noisy_run(share, strategy, **options):
    inputs, given, wrong = make_data(n=3000, noise=share)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 6))
    criterion = torch.nn.CrossEntropyLoss(reduction="none")
    loader = crest.CoresetLoader(
        DataLoader(TensorDataset(inputs, given), 50, shuffle=True),
        model,
        loss_fn=criterion,
        strategy=strategy,
        budget=1,
        **options,
    )
    train(loader, model, epochs=6, lr=0.05, criterion=criterion)
    return loader, wrong.numpy()


@pytest.mark.parametrize(
    "strategy", [crest.Full(), crest.OnlineSelection()], ids=["full", "online"]
)
def test_wrong_labels_are_found_by_one_run(strategy):
    loader, wrong = noisy_run(0.2, strategy, record=isinstance(strategy, crest.Full))
    table = loader.examples()
    found, score = np.asarray(table["is_label_issue"]), np.asarray(table["label_score"])
    assert (found & wrong).sum() / found.sum() > 0.9
    recall = (found & wrong).sum() / wrong.sum()
    assert recall > (0.6 if isinstance(strategy, crest.Full) else 0.3)
    order = score.argsort().argsort()
    auroc = (order[~wrong].mean() - order[wrong].mean()) / len(order) + 0.5
    assert auroc > 0.97
    since = np.asarray(table["left_out_since"])
    if isinstance(strategy, crest.Full):
        assert (since == -1).all()
    else:
        out = since >= 0
        assert (out == ~loader.active.numpy()).all()
        assert (since[out] >= 60).all()  # after the first pass


def test_a_loader_before_its_first_batch_has_a_table_that_knows_nothing():
    table = make_loader(crest.OnlineSelection(), record=True).examples()
    assert list(table["index"]) == list(range(400))
    assert not any(table["observed"])
    assert all(math.isnan(score) for score in table["label_score"])


def test_a_loop_that_cannot_be_seen_is_told_why():
    model = make_model()
    loader = make_loader(crest.Random(), model=model, budget=1, record=True)
    for inputs, targets, weights in loader:
        smoothed = torch.nn.functional.cross_entropy(
            model(inputs), targets, label_smoothing=0.3, reduction="none"
        )
        crest.weighted_mean(smoothed, weights).backward()
    with pytest.warns(UserWarning, match=r"no scores.*not that of loss_fn"):
        loader.examples()


def test_files_hold_the_table(tmp_path):
    model = make_model()
    loader = make_loader(crest.Random(), model=model, budget=0.5, record=True)
    train(loader, model)
    table = loader.examples(tmp_path / "deep" / "examples.csv")
    with (tmp_path / "deep" / "examples.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == list(COLUMNS)
    assert [int(row[1]) for row in rows] == list(table["times_trained"])
    seen = [row[header.index("label_score")] for row in rows]
    for text, score in zip(seen, table["label_score"], strict=True):
        assert text == "" if math.isnan(score) else float(text) == pytest.approx(score, rel=1e-6)
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(ImportError, match="pip install pyarrow, or write .csv"):
            loader.examples(tmp_path / "examples.parquet")
    else:
        from pyarrow import parquet

        loader.examples(tmp_path / "examples.parquet")
        assert parquet.read_table(tmp_path / "examples.parquet").column_names == list(COLUMNS)


@pytest.mark.parametrize(("path", "message"), [("x.txt", "must end in"), (3, "must be a path")])
def test_other_files_are_refused(path, message):
    with pytest.raises((TypeError, ValueError), match=f"path {message}"):
        write_table({"index": np.arange(2)}, path)


def test_it_is_a_data_frame_where_pandas_is(monkeypatch):
    class Pandas:
        @staticmethod
        def DataFrame(columns):
            return "frame", list(columns)

    columns = {"index": np.arange(2)}
    monkeypatch.setattr(example_table.importlib.util, "find_spec", lambda name: None)
    assert as_frame(columns) == columns
    monkeypatch.setattr(example_table.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(example_table.importlib, "import_module", lambda name: Pandas)
    assert as_frame(columns) == ("frame", ["index"])
