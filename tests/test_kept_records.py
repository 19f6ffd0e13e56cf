"""The records behind docs/results stay small."""

from pathlib import Path

import pytest

RESULTS = Path(__file__).parent.parent / "results"


@pytest.mark.skipif(not RESULTS.is_dir(), reason="no records without the repository")
def test_all_records_together_take_less_than_3_mb():
    sizes = {path: path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 3_000_000, "benchmarks/compress_results.py makes them small"
