"""Makes the pictures of the report in docs/images, from runs on CIFAR-10.

    python docs/make_screenshots.py --data-dir DIR --reports runs

ResNet-8 at half the resolution, five passes by the default, with the labels as they are and with
a fifth of them any other class: `--reports` keeps both pages, and one that shows them side by side.
Needs chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import crest
from crest.cli import main as crest_command
from crest.lab.data.views import ImageViews

HERE = Path(__file__).parent
PASSES, RUNS = 5, {"clean": "clean", "a-fifth-wrong": "noise 20"}


def load_module(path: Path) -> ModuleType:
    """Import a file that is no part of the package."""
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def train(situation: str, data_dir: Path, folder: Path) -> Path:
    """Train a small network by the default, and write the report."""
    runs = load_module(HERE.parent / "benchmarks" / "default.py")
    torch.set_num_threads(1)
    data, _ = runs.load(situation, data_dir, held_out=False)
    views = ImageViews(data)
    mean, std = data.moments
    steps = PASSES * (data.num_train // runs.BATCH_SIZE)
    strategy = crest.OnlineSelection()
    curve: list[dict[str, float]] = []
    taken = runs.training(data, views, strategy, 0, steps, runs.LR, record=True)
    for step, trained in enumerate(taken, 1):
        if step % (steps // PASSES) == 0:
            curve.append({"step": step, "accuracy": runs.accuracy(trained[0], views, data)})
    _, loader = trained

    def show(item: Any) -> torch.Tensor:
        return (item[0] * std[:, None, None] + mean[:, None, None]).clamp(0, 1)

    return loader.report(folder, curve=curve, classes=[*data.classes], show=show)


def take_pictures(page: Path, images: Path) -> None:
    """Take the pictures of one page."""
    drivers = load_module(HERE.parent / "tests" / "page" / "browser.py")
    images.mkdir(exist_ok=True)
    with drivers.browser() as window:
        for name, width, dark in (
            ("report-light", 1280, False),
            ("report-dark", 1280, True),
            ("report-phone", 390, False),
        ):
            window.resize(width, dark=dark)
            window.open(page)
            window.screenshot(images / f"{name}.png", most=1900 if width > 400 else 1500)
        window.resize(1280)
        window.open(page)
        window.click(".card")
        window.screenshot(images / "report-example.png", top=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--reports", type=Path, default=Path("runs"))
    given = parser.parse_args()
    folders = {name: given.reports / name for name in RUNS}
    for name, situation in RUNS.items():
        if not (folders[name] / "report.html").exists():
            train(situation, given.data_dir, folders[name])
    crest_command(
        ["report", *map(str, folders.values()), "--out", str(given.reports / "both.html")]
    )
    take_pictures(folders["a-fifth-wrong"] / "report.html", HERE / "images")


if __name__ == "__main__":
    main()
