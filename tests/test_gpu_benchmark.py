"""The command that waits for a GPU is rehearsed on a CPU, to its end and once more."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu.py"

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="no benchmarks beside the tests")


def call(*arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_whole_command_runs_tiny_and_goes_on(tmp_path):
    tiny = ("--tiny", "--device", "cpu", "--out", str(tmp_path))
    first = call(*tiny)
    assert first.returncode == 0, first.stderr
    records = json.loads((tmp_path / "records.json").read_text())
    assert [record["part"] for record in records] == sorted(record["part"] for record in records)
    assert {record["part"] for record in records} == set("abcd")
    assert records[0]["passed"]
    assert not [record for record in records if "failed" in record]
    off_by = {one["precision"]: one["off_by"] for one in records if one.get("what") == "quadratic"}
    assert off_by["float32"] < 1e-4  # one captured double backward pass sees the same curvature
    rows = [record["row"] for record in records if record["part"] == "d"]
    assert rows == ["random", "online", "crest_paper", "greedy"]
    cut = [record for record in records if (record["part"], record.get("row")) != ("d", "greedy")]
    (tmp_path / "records.json").write_text(json.dumps(cut))
    second = call(*tiny, "--parts", "bcd")
    assert second.returncode == 0, second.stderr
    assert second.stdout.count('"part"') == 1  # what was missing, and nothing else
    assert json.loads((tmp_path / "records.json").read_text()) == records  # its run was kept
    table = call("--out", str(tmp_path), "--show").stdout
    assert "tests: passed" in table
    assert table.count("| d |") == 4


def test_time_that_is_up_ends_the_command_where_it_can_go_on(tmp_path):
    early = ("--tiny", "--device", "cpu", "--out", str(tmp_path), "--parts", "c", "--minutes")
    assert call(*early, "0.0001").returncode == 0
    assert not (tmp_path / "records.json").exists()
    assert call(*early, "1").returncode == 0
    assert len(json.loads((tmp_path / "records.json").read_text())) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cpu"), "--data-dir DIR must name the folder"),
        (("--device", "cuda", "--tiny"), "needs a GPU; --device cpu --tiny rehearses"),
    ],
)
def test_what_is_missing_is_said_in_a_line(tmp_path, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = call("--out", str(tmp_path), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
