"""Makes the pictures of the report in docs/images, from a run on scikit-learn's digits.

    python docs/make_screenshots.py

A tenth of the labels is made wrong. Needs scikit-learn, chromium and chromedriver.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.lab.data.datasets import load_dataset

HERE = Path(__file__).parent
CRITERION = nn.CrossEntropyLoss(reduction="none")


def train(folder: Path) -> Path:
    """Train a small network by online selection, and write the report."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_dataset("digits")
    images, true = digits.train_images.float() / 255, digits.train_labels
    wrong = torch.rand(len(true)) < 0.1
    given = torch.where(wrong, (true + torch.randint(1, 10, true.shape)) % 10, true)
    data = TensorDataset(images, given)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loader = crest.CoresetLoader(
        DataLoader(data, 16, shuffle=True),
        model,
        loss_fn=CRITERION,
        strategy="online",
        budget=0.5,
        record=True,
    )
    curve = []
    for _ in range(20):
        for inputs, targets, weights in loader:
            loss = crest.weighted_mean(CRITERION(model(inputs), targets), weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            test = digits.test_images.float() / 255
            right = model(test).argmax(1) == digits.test_labels
        curve.append({"step": loader.history.steps, "accuracy": float(right.float().mean())})
    return loader.report(folder, curve=curve, classes=[*digits.classes])


def main() -> None:
    spec = importlib.util.spec_from_file_location(
        "browser", HERE.parent / "tests" / "page" / "browser.py"
    )
    assert spec is not None
    assert spec.loader is not None
    drivers = importlib.util.module_from_spec(spec)
    sys.modules["browser"] = drivers
    spec.loader.exec_module(drivers)
    images = HERE / "images"
    images.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, drivers.browser() as window:
        page = train(Path(folder) / "digits")
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


if __name__ == "__main__":
    main()
