"""The GPU's program picks what the plain version picks.

Cases run on a GPU, or in Triton's interpreter where `TRITON_INTERPRET=1` was set before triton was
imported. Without either, one test runs them all in a process of its own that is interpreted.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
import torch
from tests import reference

from crest.selection import facility_location, last_layer_distances, pairwise_distances
from crest.selection.facility_location import cover
from crest.selection.facility_location import greedy as plain
from crest.selection.kernels import backend

triton = pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


def runs(test):
    """Let a test run on a GPU or interpreted."""
    skips = pytest.mark.skipif(not INTERPRETED and DEVICE == "cpu", reason="needs a GPU")
    return pytest.mark.gpu(skips(test))


@pytest.fixture(scope="module")
def kernels():
    module = importlib.import_module("crest.selection.kernels.triton_facility_location")
    if INTERPRETED:  # which remakes triton's language at each call; once will do
        interpreter = importlib.import_module("triton.runtime.interpreter")
        for function in (module._pick.fn, triton.language.zeros.fn):
            scope = interpreter._patch_lang(function)
        scope.restore = lambda: None
        interpreter._patch_lang = lambda function: scope
    return module


def check(kernels, features, batch_size, weights=None):
    """Compare picks from features, and from distances, with those of the plain version."""
    distances = pairwise_distances(features)
    expected = plain(distances, batch_size, weights)
    on_device = None if weights is None else weights.to(DEVICE)
    for given, few in ((features, True), (distances, False)):
        picked = kernels.greedy(given.to(DEVICE), batch_size, are_features=few, weights=on_device)
        for mine, known in zip(picked, expected, strict=True):
            assert mine.tolist() == known.tolist(), "features" if few else "distances"
    return expected


def draw(seed):
    """Draw features (1, r, d), picks and perhaps weights; half of them on a lattice of ties."""
    generator = torch.Generator().manual_seed(seed)
    r, d = (int(torch.randint(1, most, (), generator=generator)) for most in (11, 5))
    batch_size = int(torch.randint(1, min(r, 3) + 1, (), generator=generator))
    features = torch.randn(1, r, d, generator=generator)
    features = features if seed % 2 else (2 * features).round() / 2
    weights = torch.rand(1, r, generator=generator) * 0.9 + 0.1 if seed % 5 == 0 else None
    return features, batch_size, weights


@runs
@pytest.mark.parametrize("first", range(0, 200, 20))
def test_random_inputs(kernels, first):
    for seed in range(first, first + 20):
        features, batch_size, weights = draw(seed)
        indices, sizes = check(kernels, features, batch_size, weights)
        if weights is None:
            distances = pairwise_distances(features[0])
            assert indices[0].tolist() == reference.greedy_of_distances(distances, batch_size)
            assert sizes.sum() == len(distances)


def gauss(r, d, seed=0):
    return torch.randn(r, d, generator=torch.Generator().manual_seed(seed))


ADVERSARIAL = {
    "one row": (gauss(1, 3), 1),
    "two equal rows": (torch.ones(2, 3), 2),
    "all equal": (torch.full((9, 2), 3.0), 5),
    "all zero": (torch.zeros(8, 4), 8),
    "half duplicates": (gauss(8, 3).repeat(2, 1), 6),
    "each row three times": (gauss(6, 3).repeat_interleave(3, dim=0), 9),
    "one-hot, one class": (torch.eye(5)[torch.zeros(12, dtype=torch.int64)], 4),
    "one-hot, all classes": (torch.eye(5)[torch.arange(15) % 5], 7),
    "equidistant": (torch.eye(12), 5),
    "a square, all ties": (torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]), 4),
    "a line of equal steps": (torch.arange(17.0)[:, None], 6),
    "mirrored": (torch.cat([gauss(7, 2), -gauss(7, 2)]), 5),
    "some rows zero": (gauss(12, 3) * (torch.arange(12) % 3 > 0)[:, None], 6),
    "huge norms": (gauss(12, 3) * 1e12, 6),
    "one huge row": (torch.cat([gauss(11, 2), torch.full((1, 2), 1e15)]), 5),
    "tiny norms": (gauss(12, 3) * 1e-15, 6),
    "tiny beside large": (gauss(14, 3) * torch.logspace(0, -8, 14)[:, None], 7),
    "far from zero": (gauss(12, 3) + 1000, 5),
    "r = m": (gauss(10, 3), 10),
    "as many rows as a power of two": (gauss(16, 4), 5),
    "one more than a power of two": (gauss(17, 4), 5),
    "as many features as are compared by differences": (gauss(10, 32), 4),
}


@runs
@pytest.mark.parametrize("name", ADVERSARIAL)
def test_adversarial_inputs(kernels, name):
    features, batch_size = ADVERSARIAL[name]
    check(kernels, features[None], batch_size)


@runs
def test_subsets_at_once_are_those_one_by_one(kernels):
    check(kernels, torch.stack([gauss(12, 3, seed) for seed in range(3)]), 4)


@runs
def test_more_distances_than_one_tile_holds(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "_AT_ONCE", 64)  # two rows of 32 at a time
    check(kernels, gauss(19, 2)[None], 5)


@runs
def test_the_known_example(kernels):
    assert kernels.picks_right(torch.device(DEVICE))


@runs
@pytest.mark.parametrize("features", ["logits", "input", "weight"])
def test_from_gradients_to_picks(kernels, monkeypatch, features):
    """As strategies ask: few features, many, and distances of a whole last layer."""
    errors, inputs = torch.softmax(gauss(24, 4), 1), gauss(24, 40, seed=1)
    reference_picks = {
        "logits": lambda: facility_location(errors, 5),
        "input": lambda: facility_location(inputs, 5),
        "weight": lambda: cover(last_layer_distances(errors, inputs)[None], 5),
    }[features]
    expected = reference_picks()
    module = importlib.import_module("crest.selection.facility_location")
    calls = []

    def pick(*arguments, **options):
        calls.append(options["are_features"])
        return kernels.greedy(*arguments, **options)

    for name in ("distances", "facility_location"):
        one = importlib.import_module(f"crest.selection.{name}")
        monkeypatch.setattr(one, "compiled_for", lambda _: None)
    monkeypatch.setattr(module, "pick_on_gpu", pick)
    picked = reference_picks()
    assert calls == [features == "logits"]
    assert picked.indices.tolist() == expected.indices.tolist()
    assert picked.cluster_sizes.tolist() == expected.cluster_sizes.tolist()


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="this is that process")
@pytest.mark.skipif(sys.platform != "linux", reason="triton is for Linux")
def test_every_case_through_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", __file__]
    run = subprocess.run(
        command,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("PASSED") >= 10 + len(ADVERSARIAL)


@pytest.mark.skipif(INTERPRETED, reason="compiles nothing")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("are_features", [True, False], ids=["features", "distances"])
def test_the_program_compiles_for_a_gpu_that_is_not_there(
    kernels, tmp_path, monkeypatch, capability, are_features
):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = ["*fp32", "*fp32", "*i32", "*fp32", "*i64", "*i32", *["i32"] * 4, *["constexpr"] * 4]
    constants = {"ARE_FEATURES": are_features, "WEIGHTED": False, "R": 512, "ROWS": 8}
    source = ASTSource(
        kernels._pick,
        dict(zip(kernels._pick.arg_names, types, strict=True)),
        constexprs=constants,
    )
    options = {"num_warps": 8, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert made.asm["cubin"]
    assert "fma.rn" not in made.asm["ptx"]  # a square is rounded before it is added


class Given:
    """Stands for a tensor on a GPU."""

    device = torch.device("cuda", 0)
    dtype = torch.float32
    shape = (1, 8, 3)


@pytest.fixture
def trust(monkeypatch):
    monkeypatch.setattr(backend, "_refused", set())
    backend._picks_right.cache_clear()
    yield
    backend._picks_right.cache_clear()


def ask():
    return backend.pick_on_gpu(Given(), 2, are_features=True, weights=None)


def fail(error):
    def raising(*arguments, **options):
        raise error

    return raising


@pytest.mark.usefixtures("trust")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picks_right": lambda device: False}, "a known example came out wrong"),
        ({"picks_right": fail(RuntimeError("PTX\nerror"))}, "RuntimeError: PTX error"),
        (
            {"picks_right": lambda device: True, "greedy": fail(ValueError("no such option"))},
            "ValueError: no such option",
        ),
    ],
    ids=["wrong", "does not compile", "fails later"],
)
def test_what_fails_is_one_warning_and_plain_torch(monkeypatch, kernels, changes, message):
    for name, value in changes.items():
        monkeypatch.setattr(kernels, name, value)
    with pytest.warns(RuntimeWarning, match=f"without Triton.*{message}"):
        assert ask() is None
    assert ask() is None  # warnings are errors


@pytest.mark.usefixtures("trust")
def test_without_triton_there_is_one_warning(monkeypatch):
    name = "triton_facility_location"
    monkeypatch.setitem(sys.modules, f"crest.selection.kernels.{name}", None)
    monkeypatch.delattr(importlib.import_module("crest.selection.kernels"), name, raising=False)
    with pytest.warns(RuntimeWarning, match="without Triton.*Install the triton"):
        assert ask() is None
    assert ask() is None


@pytest.mark.usefixtures("trust")
def test_memory_that_does_not_suffice_is_no_fault_of_triton(monkeypatch, kernels):
    monkeypatch.setattr(kernels, "picks_right", lambda device: True)
    monkeypatch.setattr(kernels, "greedy", fail(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        ask()
    assert not backend._refused


@pytest.mark.parametrize(
    ("shape", "dtype", "batch_size", "fits"),
    [
        ((2, 1024, 10), torch.float32, 512, True),
        ((2, 1025, 10), torch.float32, 512, False),
        ((2, 1024, 10), torch.float32, 513, False),
        ((2, 100, 10), torch.float64, 10, False),
    ],
)
def test_what_one_program_has_no_room_for_is_left_to_torch(kernels, shape, dtype, batch_size, fits):
    assert kernels.takes(torch.empty(shape, dtype=dtype), batch_size) is fits


def test_a_cpu_is_never_asked():
    assert backend.pick_on_gpu(gauss(4, 2)[None], 2, are_features=True, weights=None) is None
