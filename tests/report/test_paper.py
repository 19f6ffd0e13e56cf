"""Each item becomes a table or figure beside the paper's numbers."""

import io
import math

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from crest.lab.paper import ITEMS, reproduce
from crest.report import paper_figure
from crest.report.paper_figure import plot_item
from crest.report.paper_table import format_item, title
from crest.report.progress import LineProgress


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("reproduce")


def make(name, out):
    tasks = [task for task in ITEMS[name].tasks if task in ("cifar10", "cifar100")][:1]
    return reproduce(
        name, "smoke", data_dir=out, out=out, progress=LineProgress(io.StringIO()), tasks=tasks
    )


@pytest.mark.parametrize("name", ITEMS)
def test_every_item_has_a_full_table_and_figures_are_drawn(name, out):
    outcome = make(name, out)
    text = format_item(outcome)
    first, _, header, *_ = text.splitlines()
    assert first.startswith(f"## {title(outcome)}")
    assert "at smoke scale (mlp on digits, " in first
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {row.count("|") for row in rows} == {header.count("|")}
    expected = {"table2": 8, "table4": 2, "table6": 2}.get(name, 1 + len(ITEMS[name].variants))
    assert len(rows) == expected
    assert "\nPaper: " in text
    if name.startswith("fig"):
        plot_item(outcome, out / f"{name}.png")
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_legend_names_what_any_panel_shows(out, monkeypatch):
    shown = []
    monkeypatch.setattr(Figure, "legend", lambda _, handles, labels, **__: shown.extend(labels))
    plot_item(make("fig2", out), out / "legend.png")
    assert shown == ["ours", "paper"]  # the paper gives no run times, so the first panel lacks it


@pytest.mark.parametrize(
    ("x_label", "expected"),
    [
        ("step", [(20, 90.0), (60, 72.0)]),  # at 20 but one seed has something to average
        ("times picked", [(20, 45.0), (60, 72.0)]),
        ("updates", [(40.0, 70.0)]),
    ],
)
def test_seeds_are_averaged_where_they_mean_the_same(x_label, expected):
    curves = [[(20, 90), (60, 94)], [(60, 50)]]
    assert paper_figure._average(curves, x_label) == expected


def test_what_is_missing_has_no_bar(tmp_path, monkeypatch):
    heights = []
    bar = Axes.bar

    def spy(self, x, height, *arguments, **options):
        heights.extend(height)
        return bar(self, x, height, *arguments, **options)

    monkeypatch.setattr(Axes, "bar", spy)
    outcome = reproduce(
        "fig8", "smoke", data_dir=tmp_path, out=tmp_path, progress=LineProgress(io.StringIO()),
        shard=(1, 2),
    )  # fmt: skip
    plot_item(outcome, tmp_path / "fig8.png")
    assert 0.0 not in heights[1:]  # the first is full training
    assert any(map(math.isnan, heights))


def row_of(text, label):
    (row,) = [line for line in text.splitlines() if f"| {label} |" in line]
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_numbers_stand_beside_those_of_the_paper(out):
    outcome = make("table3", out)
    full, crest = (outcome.records["cifar10", label][0] for label in ("Full", "CREST"))
    cells = row_of(format_item(outcome), "CREST")
    error = 100 * abs(crest["accuracy"] - full["accuracy"]) / full["accuracy"]
    assert cells[2:6] == [f"{error:.2f}", "4.33", str(crest["updates"]), "185"]
    assert cells[6] == f"{100 * crest['accuracy']:.2f}"


def test_settings_stand_beside_those_of_the_paper(out):
    outcome = reproduce("table6", "paper", data_dir=out, out=out, progress=None)
    row = row_of(format_item(outcome), "SNLI - RoBERTa (finetune)")
    assert row[1:] == [
        *("0.05", "0.05", "4", "4", "0.5 %", "0.5 %", "8", "8", "32", "32", "1e-05", "1e-05"),
        *("adamw", "adamw"),
    ]


def test_fewer_bits_are_said_in_the_title(tmp_path):
    outcome = reproduce(
        "fig4", "smoke", data_dir=tmp_path, out=tmp_path, progress=LineProgress(io.StringIO()),
        machine={"threads": 1, "autocast": "bfloat16"},
    )  # fmt: skip
    assert "in batches of 16, with autocast to bfloat16): updates" in title(outcome)


def test_what_is_missing_is_said(tmp_path):
    outcome = reproduce(
        "fig8", "smoke", data_dir=tmp_path, out=tmp_path, progress=LineProgress(io.StringIO()),
        minutes=0,
    )  # fmt: skip
    text = format_item(outcome)
    assert "4 run(s) are not finished" in text
    assert row_of(text, "CREST")[2:4] == ["-", "5.2"]
    plot_item(outcome, tmp_path / "fig8.png")
