"""The first screen: what it says, and what it leaves behind."""

import json

import pytest

from crest.cli import demo

pytest.importorskip("sklearn")


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_part_of_the_demo_says_what_came_out(share, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_SEEDS", (0,))
    monkeypatch.setattr(demo, "_EPOCHS", 6)
    text = demo._compare(share, tmp_path)
    for row in ("online", "random", "full", "random, equal time"):
        assert f"\n{row} " in text
    assert "Equal time: online minus random is" in text
    assert ("Labels: of 303 that were made wrong it found" in text) == (share > 0)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert (tmp_path / "label-issues.png").exists() == (share > 0)
    records = json.loads((tmp_path / "results.json").read_text())
    assert {record["steps"] for record in records if record["strategy"] == "online"} == {132}
