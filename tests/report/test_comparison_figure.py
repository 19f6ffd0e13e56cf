"""The figure shows every strategy against steps and seconds."""

import pytest
from PIL import Image

from crest import registered_strategies
from crest.report import comparison_figure
from crest.report.comparison_figure import plot_comparison

WORDS = list(registered_strategies())


def test_the_figure_is_a_picture_with_both_panels(make_record, tmp_path, monkeypatch):
    drawn, styles = [], set()
    draw = comparison_figure._draw

    def spy(panel, name, records, key, style):
        drawn.append((name, key))
        styles.add((name, style))
        draw(panel, name, records, key, style)

    monkeypatch.setattr(comparison_figure, "_draw", spy)
    path = tmp_path / "comparison.png"
    records = [
        make_record(strategy, seed=seed, accuracy=0.5 + seed / 10)
        for seed in (0, 1)
        for strategy in WORDS
    ]
    plot_comparison(records, path)
    assert sorted(drawn) == sorted((name, key) for name in WORDS for key in ("step", "seconds"))
    assert len(styles) == len({style for _, style in styles}) == len(WORDS)
    with Image.open(path) as image:
        image.load()
        assert image.width > 1.5 * image.height


def test_lines_are_means_over_seeds_at_each_evaluation(make_record, tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    lines = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, *_, **__: lines.append((x, y)))
    records = [
        make_record(seed=0, accuracy=0.4, steps=10, equal_time=True),
        make_record(seed=1, accuracy=0.8, steps=30, equal_time=True),
    ]
    plot_comparison(records, tmp_path / "figure.png")
    assert lines[0] == ([10, 20], pytest.approx([30, 60]))
    assert lines[1] == ([1, 2], pytest.approx([30, 60]))


def test_missing_matplotlib_names_the_extra(make_record, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"the figure needs .*crest-coresets\[cli\]"):
        plot_comparison([make_record()], tmp_path / "figure.png")
