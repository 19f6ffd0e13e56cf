"""Compress the records of finished runs, and leave out what no table of docs/results reads.

    python benchmarks/compress_results.py results/reproduce/small/cifar10.json

writes FILE.xz in place of FILE. Every command that takes FILE reads both, and writes new runs to
FILE; the same command adds these to FILE.xz. Call it while no run is under way there.
"""

from __future__ import annotations

import argparse
import json
import lzma
from pathlib import Path
from typing import Any

from crest.lab.run.results import Results

# Fields of the regions in `history`. Steps, updates, T_1, rho and its parts, gradient errors and
# effective sizes stay, and so do the totals of seconds and cost.
LEFT_OUT = {
    *("seconds", "cost", "worth", "price", "selected_loss"),
    *("displacement_norm", "predicted_loss", "anchor_loss"),
}


def thin(value: Any) -> Any:
    """Leave out fields of the dicts in every list named `records`."""
    if isinstance(value, list):
        return [thin(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        key: [
            {name: number for name, number in region.items() if name not in LEFT_OUT}
            for region in entry
        ]
        if key == "records"
        else thin(entry)
        for key, entry in value.items()
    }


def compress(path: Path) -> Path:
    """Write the compressed file, then remove the other."""
    compressed = path.with_name(f"{path.name}.xz")
    content = Results(path).records if compressed.exists() else json.loads(path.read_text())
    if isinstance(content, list):
        lines = ",\n".join(json.dumps(thin(record)) for record in content)
        text = f"[\n{lines}\n]\n"
    else:
        text = json.dumps(thin(content)) + "\n"
    partial = path.with_name(f".{compressed.name}")
    partial.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
    partial.replace(compressed)
    path.unlink()
    return compressed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE")
    for path in parser.parse_args().results:
        before = path.stat().st_size
        compressed = compress(path)
        print(f"{compressed}: {compressed.stat().st_size:,} bytes, before {before:,}")


if __name__ == "__main__":
    main()
