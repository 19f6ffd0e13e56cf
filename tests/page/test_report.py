"""The page of a run: what it holds, and that anything can be in it."""

import base64
import html.parser
import json
import zlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import crest
from crest.cli import main
from crest.page import read_run, write_page
from crest.page.facts import gallery_groups, pack_columns
from crest.page.pictures import Pictures
from toys import CRITERION, make_loader, make_model, train

HOSTILE = '<script>document.title="x"</script> "quotes" </script><!-- \x00\x07\u202e ../../etc'


@pytest.fixture(scope="module")
def finished():
    model = make_model()
    loader = make_loader(crest.OnlineSelection(), model=model, budget=1, record=True)
    train(loader, model, epochs=4)
    return loader


class Outline(html.parser.HTMLParser):
    """What a browser would make of a page, as far as it matters here."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data


def page_of(path):
    outline = Outline(path.read_text(encoding="utf-8"))
    return outline, json.loads(outline.scripts[0])


def unpacked(run, name):
    packed = run["columns"][name]
    kinds = {"u8": "<u1", "u16": "<u2", "u32": "<u4", "f16": "<f2"}
    raw = np.frombuffer(base64.b64decode(packed["data"]), kinds[packed["type"]])
    return raw if packed["type"] == "f16" else raw.astype(int) + packed["base"]


def test_the_page_stands_alone_and_holds_the_table(finished, tmp_path):
    page = finished.report(tmp_path / "run", curve=[{"step": 25, "accuracy": 0.5}])
    assert page == tmp_path / "run" / "report.html"
    outline, data = page_of(page)
    assert len(outline.scripts) == 2
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    (run,) = data["runs"]
    assert run == read_run(tmp_path / "run")
    table = finished.examples()
    for name in run["columns"]:
        tolerance = {"rtol": 2e-3, "atol": 1e-4} if table[name].dtype.kind == "f" else {}
        np.testing.assert_allclose(unpacked(run, name), table[name], **tolerance)
    assert run["numbers"]["steps"] == finished.history.steps
    assert run["curve"] == [{"step": 25, "accuracy": 0.5}]
    assert len(run["histories"]["0" if "0" in run["histories"] else next(iter(run["histories"]))])
    assert "of 100 steps were on selected batches; choosing took" in data["verdict"]


def test_a_report_changes_nothing(finished, tmp_path):
    before, random = repr(finished.state_dict()), torch.get_rng_state()
    finished.report(tmp_path)
    assert repr(finished.state_dict()) == before
    assert torch.equal(torch.get_rng_state(), random)


class Texts(Dataset):
    """Anything in texts and class names; some examples cannot be read."""

    classes = (HOSTILE, "b", "c", "d", "e")

    def __init__(self):
        self.inputs = torch.randn(60, 20, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return 60

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError(f"no file {HOSTILE}")
        return {"text": f"{HOSTILE} {index}", "inputs": self.inputs[index], "label": index % 5}

    broken = ()


def text_loader():
    def loss_fn(model, batch):
        return CRITERION(model(batch["inputs"]), batch["label"])

    return crest.CoresetLoader(
        DataLoader(Texts(), 10, shuffle=True),
        make_model(),
        loss_fn=loss_fn,
        strategy=crest.Random(),
        budget=1,
        record=True,
    )


def train_texts(loader):
    for batch in loader:
        losses = CRITERION(loader._model(batch["inputs"]), batch["label"])
        crest.weighted_mean(losses, batch["sample_weight"]).backward()


def test_hostile_text_stays_data(tmp_path):
    loader = text_loader()
    train_texts(loader)
    loader._train_loader.dataset.broken = (3, 4)
    outline, data = page_of(loader.report(tmp_path / "a..b"))
    assert outline.tags.count("script") == 2
    (run,) = data["runs"]
    assert run["classes"][0] == HOSTILE
    kinds = {index: item["kind"] for index, item in run["items"].items()}
    assert kinds["3"] == "none"
    assert kinds["5"] == "text"
    assert run["items"]["5"]["text"] == f"{HOSTILE} 5"
    assert any("2 examples cannot be drawn" in note for note in run["notes"])


def test_a_loader_before_its_first_batch_says_so(tmp_path):
    _, data = page_of(make_loader(crest.OnlineSelection()).report(tmp_path))
    assert data["verdict"].startswith("Nothing was trained yet")
    assert data["runs"][0]["groups"][0]["name"] == "first"


def test_a_loader_that_records_nothing_says_how_to(tmp_path):
    model = make_model()
    loader = make_loader(crest.Random(), model=model)
    train(loader, model)
    (run,) = page_of(loader.report(tmp_path))[1]["runs"]
    assert any("record=True" in note for note in run["notes"])
    assert [group["name"] for group in run["groups"]] == ["most", "least"]


def decoded(png):
    """Read a PNG without filters."""
    data = base64.b64decode(png)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[k : k + 4], "big") for k in (16, 20))
    channels = {0: 1, 2: 3}[data[25]]
    length = int.from_bytes(data[33:37], "big")
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + length]), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 0).all()
    return rows[:, 1:].reshape(height, width, channels)


@pytest.mark.parametrize(
    "item",
    [
        torch.arange(300, dtype=torch.uint8).reshape(3, 10, 10),
        torch.arange(300, dtype=torch.uint8).reshape(3, 10, 10).movedim(0, 2),
        torch.arange(300, dtype=torch.uint8).reshape(3, 10, 10).numpy(),
        torch.arange(300, dtype=torch.uint8).reshape(3, 10, 10).float() / 255,
    ],
    ids=["bytes", "channels last", "NumPy", "in [0, 1]"],
)
def test_pictures_keep_their_pixels(item):
    pictures = Pictures()
    pictures.add(7, (item, 1))
    found = pictures.encoded(10**6)[7]
    truth = torch.arange(300, dtype=torch.uint8).reshape(3, 10, 10).movedim(0, 2).numpy()
    assert (decoded(found["png"]) == truth).all()


def test_normalized_pictures_are_scaled_alike():
    pictures = Pictures()
    pictures.add(0, (torch.full((1, 8, 8), -2.0), 0))
    pictures.add(1, (torch.full((1, 8, 8), 2.0), 0))
    found = pictures.encoded(10**6)
    assert decoded(found[0]["png"]).max() < 10
    assert decoded(found[1]["png"]).min() > 245


def test_large_pictures_are_shrunk_and_many_left_out():
    pictures = Pictures()
    for k in range(3):
        pictures.add(k, torch.rand(3, 200, 100))
    found = pictures.encoded(10_000)
    assert decoded(found[0]["png"]).shape == (48, 24, 3)
    assert found[2]["kind"] == "none"


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ((torch.randn(30), 1), "numbers"),
        ("a text", "text"),
        ({"sentence": "a text", "label": 1}, "text"),
        (b"bytes \xff", "text"),
        ([1, 2.5, float("nan")], "numbers"),
        (object(), "text"),
        ((torch.tensor([1 + 2j]), 0), "text"),
    ],
)
def test_other_items_are_texts_or_numbers(item, kind):
    pictures = Pictures()
    pictures.add(0, item)
    assert pictures.encoded(100)[0]["kind"] == kind


def test_columns_are_packed_small():
    n = 50_000
    columns = {
        "times_trained": np.arange(n) % 30,
        "left_out_since": np.where(np.arange(n) % 2, -1, 70_000),
        "label_score": np.linspace(0, 1, n, dtype=np.float32),
        "observed": np.ones(n, dtype=bool),
    }
    packed = pack_columns(columns)
    assert {name: one["type"] for name, one in packed.items()} == {
        **{"times_trained": "u8", "left_out_since": "u32", "label_score": "f16", "observed": "u8"}
    }
    assert unpacked({"columns": packed}, "left_out_since").tolist() == list(
        columns["left_out_since"]
    )


def test_the_gallery_begins_with_the_most_suspicious(finished):
    columns = finished._columns()
    groups = {group["name"]: group for group in gallery_groups(columns)}
    assert next(iter(groups)) == "suspicious"
    rows = groups["suspicious"]["indices"]
    listed, scores = columns["is_label_issue"][rows], columns["label_score"][rows]
    assert (np.diff(scores[listed]) >= 0).all()
    assert (np.diff(scores[~listed]) >= 0).all()
    assert listed[: int(listed.sum())].all()
    hardest = columns["smoothed_loss"][groups["hardest"]["indices"]]
    assert (np.diff(hardest) <= 0).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"curve": [{"accuracy": 1}]}, "curve must be a list of points"),
        ({"curve": [{"step": "x"}]}, "curve must be a list of points"),
        ({"curve": 3}, "curve must be a list"),
        ({"classes": "ab"}, "classes must be a list"),
        ({"show": 3}, "show must be a function"),
    ],
)
def test_odd_arguments_are_refused(finished, tmp_path, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        finished.report(tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_several_runs_come_on_one_page(finished, tmp_path, capsys):
    finished.report(tmp_path / "a", curve=[{"step": 9, "accuracy": 0.5, "seconds": 3}])
    finished.report(tmp_path / "b")
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "Written:" in capsys.readouterr().out
    _, data = page_of(tmp_path / "a" / "report.html")
    assert [run["name"] for run in data["runs"]] == ["a", "b"]


def test_runs_of_experiments_have_a_page(tmp_path, capsys):
    words = ["compare", "digits", "--strategies", "greedy,random", "--seeds", "0", "--epochs", "2"]
    assert main([*words, "--network", "cnn", "--out", str(tmp_path)]) == 0
    assert main(["report", str(tmp_path)]) == 0
    _, data = page_of(tmp_path / "report.html")
    assert [run["name"].split(": ")[1] for run in data["runs"]] == [
        "greedy, seed 0",
        "random, seed 0",
    ]
    assert data["runs"][0]["numbers"]["selected_steps"] > 0
    assert data["runs"][1]["numbers"]["selected_steps"] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must hold report.json, which loader.report() writes, or results.json"),
        ("", "it is no JSON"),
        ('{"format": "crest-report", "version": 1, "run": {"na', "it is no JSON"),
        ('{"format": "crest-report", "version": 0, "run": {}}', "must be of version 1; it is of 0"),
        ('{"format": "crest-report", "version": 1, "run": {"name": "a"}}', "is damaged; it lacks"),
        ("[1]", "it is something else"),
    ],
)
def test_folders_without_a_whole_record_are_refused_by_name(content, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_what_a_class_or_a_setting_is_called_cannot_end_the_data(tmp_path):
    run = {"name": HOSTILE, "verdict": HOSTILE, "settings": {HOSTILE: HOSTILE}, "numbers": {}}
    page = write_page([run], HOSTILE, tmp_path / "page.html")
    outline, data = page_of(page)
    assert outline.tags.count("script") == 2
    assert data["runs"] == [run]


def test_the_command_looks_over_a_loader_of_the_user(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch, crest\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "def make():\n"
        "    data = TensorDataset(torch.randn(64, 4), torch.randint(2, (64,)))\n"
        "    criterion = torch.nn.CrossEntropyLoss(reduction='none')\n"
        "    model = torch.nn.Linear(4, 2)\n"
        "    return crest.CoresetLoader(DataLoader(data, 8), model, loss_fn=criterion,\n"
        "                               strategy='online')\n"
        "def other():\n"
        "    return 3\n"
    )
    assert main(["doctor", f"{tmp_path / 'mine.py'}:make", "--num-steps", "4"]) == 0
    assert "PROBLEM  selection: batches are never selected in this run" in capsys.readouterr().out
    assert main(["doctor", f"{tmp_path / 'mine.py'}:other"]) == 2
    assert "must return a CoresetLoader; got int" in capsys.readouterr().err
    assert main(["doctor", f"{tmp_path / 'mine.py'}:none"]) == 2
    assert "must have a function 'none'" in capsys.readouterr().err


def test_the_command_looks_over_an_experiment(capsys):
    assert main(["doctor", "digits", "--strategy", "online", "--epochs", "5"]) == 0
    told = capsys.readouterr().out
    assert "PROBLEM  selection: batches are never selected in this run: it has 22 steps" in told


def test_models_of_the_report_need_no_head(tmp_path):
    model = nn.Linear(4, 1)
    data = TensorDataset(torch.randn(40, 4), torch.randn(40, 1))
    loader = crest.CoresetLoader(
        DataLoader(data, 8),
        model,
        loss_fn=lambda y, t: ((y - t) ** 2).mean(1),
        strategy=crest.Random(),
        budget=1,
        record=True,
    )
    for inputs, targets, weights in loader:
        crest.weighted_mean(((model(inputs) - targets) ** 2).mean(1), weights).backward()
    (run,) = page_of(loader.report(tmp_path))[1]["runs"]
    assert run["groups"][0]["name"] == "hardest"
    assert any("no classes" in note for note in run["notes"])
