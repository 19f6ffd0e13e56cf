"""Results are never half written, never overwritten, and complete each other."""

import json
import lzma

import pytest

from crest.lab.run.results import Results


def make_record(strategy="random", seed=0, accuracy=0.5, **changes):
    settings = {"strategy": strategy, "seed": seed, "budget": 0.1, "lr": 0.1}
    record = {
        "strategy": strategy, "seed": seed, "equal_time": False, "settings": settings,
        "steps": 10, "accuracy": accuracy, "seconds": 1.0, "cost": 10.0, "overhead": 0.0,
        "curve": [],
    }  # fmt: skip
    return {**record, **changes}


def compress(path, *records):
    """Keep records as benchmarks/compress_results.py does, and return where."""
    compressed = path.with_name(f"{path.name}.xz")
    text = json.dumps([{"accuracy_gap": None, **record} for record in records])
    compressed.write_bytes(lzma.compress(text.encode()))
    return compressed


def test_records_come_back_from_the_file(tmp_path):
    path = tmp_path / "new" / "results.json"
    results = Results(path)
    stored = results.add(make_record(seed=1))
    results.add(make_record(seed=2))
    again = Results(path)
    assert again.records == results.records == json.loads(path.read_text())
    assert again.find(stored["settings"]) == stored
    assert again.find({"strategy": "random"}) is None
    assert list(path.parent.iterdir()) == [path]  # nothing temporary stays


def test_gaps_are_filled_in_once_full_is_there(tmp_path):
    results = Results(tmp_path / "results.json")
    assert results.add(make_record(accuracy=0.72))["accuracy_gap"] is None
    results.add(make_record(seed=1, accuracy=0.5))
    full = make_record("full", accuracy=0.8)
    full["settings"]["budget"] = 1.0
    results.add(full)
    gaps = {(r["strategy"], r["seed"]): r["accuracy_gap"] for r in Results(results.path).records}
    assert gaps == {
        ("random", 0): pytest.approx(0.1),
        ("random", 1): None,  # full has no seed 1
        ("full", 0): 0,
    }


def test_a_newer_field_that_is_none_keeps_no_run_from_its_full_one(tmp_path):
    results = Results(tmp_path / "results.json")
    results.add(make_record("full", accuracy=0.8))
    newer = make_record(accuracy=0.72)
    newer["settings"]["image_size"] = None
    assert results.add(newer)["accuracy_gap"] == pytest.approx(0.1)


def test_full_of_other_settings_gives_no_gap(tmp_path):
    results = Results(tmp_path / "results.json")
    full = make_record("full", accuracy=0.8)
    full["settings"]["lr"] = 0.2
    results.add(full)
    assert results.add(make_record())["accuracy_gap"] is None


def test_what_another_process_wrote_meanwhile_is_kept(tmp_path):
    one, other = Results(tmp_path / "results.json"), Results(tmp_path / "results.json")
    one.add(make_record(seed=1))
    other.add(make_record(seed=2))
    assert [record["seed"] for record in Results(one.path).records] == [1, 2]


def test_the_same_run_is_stored_once(tmp_path):
    results = Results(tmp_path / "results.json")
    results.add(make_record(accuracy=0.1))
    results.add(make_record(accuracy=0.2))
    assert [record["accuracy"] for record in results.records] == [0.2]


def test_a_run_of_an_older_version_is_found_though_it_lacks_a_newer_field(tmp_path):
    results = Results(tmp_path / "results.json")
    old = make_record()
    old["settings"]["strategy_settings"] = {"subset_size": 64}
    stored = results.add(old)
    newer = {**old["settings"], "strategy_settings": {"subset_size": 64, "select_until": None}}
    assert results.find(newer) == stored
    set_now = {"subset_size": 64, "select_until": 10}
    assert results.find({**newer, "strategy_settings": set_now}) is None
    results.add({**old, "settings": newer})
    assert len(Results(results.path).records) == 1


def test_a_run_of_before_there_were_optimizers_is_one_of_sgd(tmp_path):
    results = Results(tmp_path / "results.json")
    stored = results.add(make_record())
    settings = stored["settings"]
    assert results.find({**settings, "optimizer": "sgd"}) == stored
    assert results.find({**settings, "optimizer": "adamw"}) is None


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    results = Results(tmp_path / "results.json")
    results.add(make_record(seed=1))
    before = results.path.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        results.add(make_record(seed=2))
    assert results.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [results.path]


def test_infinities_become_null(tmp_path):
    results = Results(tmp_path / "results.json")
    results.add(make_record(history={"records": [{"relative_error": float("inf")}]}))
    assert "Infinity" not in results.path.read_text()
    assert results.records[0]["history"] == {"records": [{"relative_error": None}]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "it is no JSON"),
        ('[{"strategy": "crest"', "it is no JSON"),
        ("{}", "it is a dict"),
        ("[3]", "entry 0 lacks"),
        ('[{"strategy": "crest", "seed": 0}]', "entry 0 lacks accuracy"),
        ("\udcff", "it is no JSON"),
    ],
)
def test_a_corrupt_file_is_named_and_left_alone(tmp_path, content, reason):
    path = tmp_path / "results.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"results.json must be a list .*{reason}.*--out"):
        Results(path)
    assert path.read_bytes() == before


def test_a_file_that_breaks_during_the_run_is_left_alone(tmp_path):
    results = Results(tmp_path / "results.json")
    results.path.write_text("my notes")
    with pytest.raises(ValueError, match="left as it is"):
        results.add(make_record())
    assert results.path.read_text() == "my notes"


def test_compressed_records_are_found(tmp_path):
    path = tmp_path / "results.json"
    compress(path, make_record(seed=1), make_record(seed=2))
    results = Results(path)
    assert [record["seed"] for record in results.records] == [1, 2]
    assert results.find(make_record(seed=2)["settings"]) == results.records[1]
    assert not path.exists()


def test_what_is_added_stands_beside_compressed_records(tmp_path):
    path = tmp_path / "results.json"
    compressed = compress(path, make_record("full", accuracy=0.8), make_record(seed=1))
    before = compressed.read_bytes()
    results = Results(path)
    assert results.add(make_record(accuracy=0.72))["accuracy_gap"] == pytest.approx(0.1)
    results.add(make_record("full", seed=1, accuracy=1.0))
    kept = [("full", 0, 0), ("random", 1, 0.5), ("random", 0, pytest.approx(0.1)), ("full", 1, 0)]
    for some in (results, Results(path)):
        assert [(r["strategy"], r["seed"], r["accuracy_gap"]) for r in some.records] == kept
    assert compressed.read_bytes() == before
    assert [record["seed"] for record in json.loads(path.read_text())] == [0, 1]


def test_a_run_that_is_trained_again_counts_in_place_of_its_compressed_record(tmp_path):
    path = tmp_path / "results.json"
    compress(path, make_record(seed=1, accuracy=0.1), make_record(seed=2))
    Results(path).add(make_record(seed=1, accuracy=0.2))
    results = Results(path)
    assert [(r["seed"], r["accuracy"]) for r in results.records] == [(2, 0.5), (1, 0.2)]
    assert results.find(make_record(seed=1)["settings"])["accuracy"] == 0.2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it cannot be decompressed"),
        (b"[]", "it cannot be decompressed"),
        (lzma.compress(b"[]")[:-9], "it cannot be decompressed"),
        (lzma.compress(b"[3"), "it is no JSON"),
        (lzma.compress(b"{}"), "it is a dict"),
    ],
)
def test_a_damaged_compressed_file_is_named_and_nothing_is_written(tmp_path, content, reason):
    results = Results(tmp_path / "results.json")
    compressed = tmp_path / "results.json.xz"
    compressed.write_bytes(content)
    with pytest.raises(ValueError, match=rf"results.json.xz must be a list .*{reason}.*--out"):
        Results(results.path)
    with pytest.raises(ValueError, match=reason):
        results.add(make_record())
    assert list(tmp_path.iterdir()) == [compressed]
    assert compressed.read_bytes() == content
