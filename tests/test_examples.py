"""The examples run as they stand, and are short."""

import runpy
import sys
from pathlib import Path

import pytest

from crest.strategies import registry

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs_and_is_short(path, monkeypatch, capsys):
    assert len(path.read_text().splitlines()) < 50
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))  # one registers its own
    runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    assert said
    if path.stem == "resume":
        assert "the same to the last bit: True" in said
