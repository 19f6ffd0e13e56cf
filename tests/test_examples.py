"""The examples run as they stand, and are short."""

import runpy
import sys
from pathlib import Path

import pytest

from crest.strategies import registry

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {
    "accelerate_loop": ["accelerate"],
    "hf_trainer_loop": ["transformers", "accelerate"],
    "lightning_loop": ["lightning"],
    "lora_llama": ["transformers", "peft"],
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # of frameworks, about small machines
def test_an_example_runs_and_is_short(path, monkeypatch, capfd):
    for needed in NEEDS.get(path.stem, ()):
        pytest.importorskip(needed)
    assert len(path.read_text().splitlines()) < 60
    monkeypatch.setattr(sys, "argv", [str(path)])
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))  # one registers its own
    runpy.run_path(str(path), run_name="__main__")
    said = capfd.readouterr().out  # of other processes, too
    assert said
    if path.stem == "resume":
        assert "the same to the last bit: True" in said
