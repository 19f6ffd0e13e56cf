"""`kill -9` at random moments: nothing is lost but the steps since the last save.

`python benchmarks/kill.py` does more of it: twenty kills, Ctrl-C, two processes on one folder.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crest.strategies import registered_strategies

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "kill.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills are those of POSIX")
def test_a_comparison_of_all_strategies_outlives_kills_at_random_moments():
    words = ["--kills", "6", "--seeds", "0", "--epochs", "2", "--seed", "2"]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "nothing lost" in run.stdout
    assert f"{len(registered_strategies())} records" in run.stdout
