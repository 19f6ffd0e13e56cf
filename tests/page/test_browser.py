"""The page in a real browser: it opens, draws, filters, and asks for nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import crest
from crest.page import write_page
from crest.page.facts import gallery_groups, pack_columns
from crest.page.pictures import Pictures

sys.path.insert(0, str(Path(__file__).parent))
import browser as drivers  # a file beside this one

pytestmark = pytest.mark.skipif(not drivers.AVAILABLE, reason="needs chromium and chromedriver")

HOSTILE = '<script>window.hurt=1</script><img src=x onerror="window.hurt=1">"\x07\u202e'


class Rows(Dataset):
    def __len__(self):
        return 50_000


def make_run(n=50_000, kind="image", name="run"):
    """A page's worth of n examples, as `loader.report` makes it."""
    draw = np.random.default_rng(0)
    score = draw.random(n).astype(np.float32)
    columns = {
        "index": np.arange(n),
        "times_trained": draw.poisson(8, n),
        "times_selected": draw.poisson(4, n),
        "num_observations": draw.poisson(8, n) + 1,
        "observed": np.ones(n, dtype=bool),
        "last_loss": draw.gamma(1, 1, n).astype(np.float32),
        "smoothed_loss": draw.gamma(1, 1, n).astype(np.float32),
        "aum": 2 * score - 1,
        "forgotten": draw.poisson(0.5, n),
        "label_score": score,
        "is_label_issue": score < 0.1,
        "given_label": draw.integers(10, size=n),
        "predicted_label": draw.integers(10, size=n),
        "mistakenness": 1 - score,
        "left_out_since": np.where(score < 0.1, 400, -1),
    }
    groups = gallery_groups(columns)
    pictures = Pictures()
    for index in {i for group in groups for i in group["indices"]}:
        image = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
        pictures.add(index, image if kind == "image" else f"{HOSTILE} {index}")
    steps = list(range(0, 4000, 40))
    return {
        "name": name,
        "verdict": "83 % of 4,000 steps were on selected batches.",
        "settings": {"strategy": "OnlineSelection", "strategy.error_threshold": 0.05, "x": HOSTILE},
        "machine": {"platform": "any"},
        "versions": {"crest": crest.__version__},
        "numbers": {
            **{"examples": n, "steps": 4000, "selected_steps": 3320, "cost": 4100.0},
            **{"overhead": 0.025, "seconds": 300.0},
        },
        "seconds": {"train": 12_280.4, "select": 5.0},
        "costs": {"train": 4000.0, "features": 100.0},
        "curve": [{"step": s, "seconds": s / 10, "accuracy": s / 5000} for s in steps],
        "train_curve": [{"step": s, "loss": 2 - s / 4000, "accuracy": s / 5000} for s in steps],
        "regions": [
            {"step": s, "length": 40, "selected": s > 400, "relative_error": 0.04, "active": n - s}
            for s in steps
        ],
        "classes": [HOSTILE, *"bcdefghij"],
        "columns": pack_columns(columns),
        "groups": groups,
        "items": {str(k): item for k, item in pictures.encoded(2_500_000).items()},
        "histories": {
            str(i): [[k * 400, 2.0 / (k + 1)] for k in range(8)]
            for group in groups
            for i in group["indices"]
        },
        "notes": [HOSTILE],
    }


@pytest.fixture(scope="module")
def window():
    with drivers.browser() as window:
        yield window


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = make_run()
    return write_page([run], run["verdict"], tmp_path_factory.mktemp("page") / "report.html")


def test_fifty_thousand_examples_are_small_and_open_fast(window, page):
    assert page.stat().st_size < 5_000_000
    window.resize(1280)
    assert window.open(page) < 30  # 3 on a machine that is not shared; measured in the docs
    timing = window.run(
        "const t = performance.getEntriesByType('navigation')[0];"
        "return t.domContentLoadedEventEnd - t.startTime"
    )
    assert timing < 15_000
    assert window.complaints() == []
    assert window.run("return performance.getEntriesByType('resource').length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_everything_fits_and_can_be_read(window, page, width, dark):
    window.resize(width, dark=dark)
    window.open(page)
    assert window.run("return document.documentElement.scrollWidth") <= width
    boxes = window.run(
        "return [...document.querySelectorAll('figure svg')].map(s => s.getBoundingClientRect())"
        ".map(b => [b.left, b.right, b.height])"
    )
    assert len(boxes) >= 8
    assert all(left >= 0 and right <= width and height > 20 for left, right, height in boxes)
    beyond = window.run(
        "return [...document.querySelectorAll('figure svg text')].filter(t => t.getBBox().x + "
        "t.getBBox().width > t.ownerSVGElement.viewBox.baseVal.width).map(t => t.textContent)"
    )
    assert beyond == []
    assert _contrast(window, "body") > 7
    assert _contrast(window, ".quiet") > 4.5
    assert window.complaints() == []


def _contrast(window, selector):
    """Of text to what is behind it, as the Web Content Accessibility Guidelines define it."""
    colours = window.run(
        "const node = document.querySelector(arguments[0]);"
        "return [getComputedStyle(node).color, getComputedStyle(document.body).backgroundColor]",
        selector,
    )
    light = []
    for colour in colours:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        light.append(sum(k * p for k, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_the_theme_can_be_switched(window, page):
    window.resize(1280)
    window.open(page)
    before = window.run("return getComputedStyle(document.body).backgroundColor")
    window.click("#theme")
    assert window.run("return getComputedStyle(document.body).backgroundColor") != before
    window.click("#theme")
    assert window.run("return getComputedStyle(document.body).backgroundColor") == before


def cards(window):
    return window.run(
        "return [...document.querySelectorAll('.card b')].map(b => Number(b.textContent.slice(1)))"
    )


def test_groups_classes_and_search_choose_what_is_shown(window, page):
    window.resize(1280)
    window.open(page)
    first = cards(window)
    assert len(first) == 48
    window.click("#groups button:nth-child(2)")
    assert cards(window) != first
    assert window.run("return document.querySelector('#groups [aria-pressed=true]').textContent")
    window.run(
        "const s = document.getElementById('class'); s.value = '3';"
        "s.dispatchEvent(new Event('change'))"
    )
    assert 0 < len(cards(window)) < 48
    window.type("#search", "49999")
    assert cards(window) == [49999]
    window.run(
        "const s = document.getElementById('search'); s.value = '50000';"
        "s.dispatchEvent(new Event('input'))"
    )
    assert cards(window) == []
    assert "There is no example 50000" in window.run(
        "return document.getElementById('found').textContent"
    )


def test_a_click_shows_the_history_and_the_keyboard_does_too(window, page):
    window.resize(1280)
    window.open(page)
    index = cards(window)[0]
    window.click(".card")
    assert window.run("return document.getElementById('detail').open")
    told = window.run("return document.getElementById('detail').textContent")
    assert f"Example {index}" in told
    assert "Its loss" in told
    assert window.run("return document.activeElement.textContent") == "Close"
    window.run("document.activeElement.click()")
    assert not window.run("return document.getElementById('detail').open")
    window.run("document.querySelector('.card').focus()")
    window.tell(
        "POST",
        "/actions",
        {
            "actions": [
                {
                    "type": "key",
                    "id": "k",
                    "actions": [
                        {"type": "keyDown", "value": "\ue007"},
                        {"type": "keyUp", "value": "\ue007"},
                    ],
                }
            ]
        },
    )
    assert window.run("return document.getElementById('detail').open")


def test_every_control_and_figure_has_a_name(window, page):
    window.resize(1280)
    window.open(page)
    nameless = window.run(
        "return [...document.querySelectorAll('button, select, input, svg, img, [tabindex]')]"
        ".filter(n => !(n.getAttribute('aria-label') || n.getAttribute('alt')"
        " || n.textContent.trim() || (n.labels && n.labels.length))).map(n => n.outerHTML)"
    )
    assert nameless == []


def test_seconds_take_the_place_of_steps(window, page):
    window.resize(1280)
    window.open(page)
    window.click("[data-axis=seconds]")
    assert "against seconds" in window.run(
        "return document.querySelector('figure svg').getAttribute('aria-label')"
    )


def test_hostile_texts_are_shown_as_texts_and_runs_side_by_side(window, tmp_path):
    runs = [make_run(500, "text", HOSTILE), make_run(300, "text", "b")]
    path = write_page(runs, HOSTILE, tmp_path / "a..b <i>.html")
    window.resize(390)
    window.open(path)
    assert window.run("return document.documentElement.scrollWidth") <= 390
    assert window.run("return window.hurt") is None
    assert window.run("return document.querySelectorAll('img[src=x]').length") == 0
    assert "<script>" in window.run("return document.querySelector('h1').textContent")
    assert "<script>" in window.run("return document.querySelector('.card .shown').textContent")
    window.run(
        "const s = document.getElementById('run'); s.value = '1';"
        "s.dispatchEvent(new Event('change'))"
    )
    assert window.run("return document.querySelectorAll('#runs-table tbody tr').length") == 2
    assert window.complaints() == []
