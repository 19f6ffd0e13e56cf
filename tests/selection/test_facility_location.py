from __future__ import annotations

import importlib
import itertools
import math
import multiprocessing
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests import reference

from crest.selection import Coreset, facility_location, last_layer_distances
from crest.selection.facility_location import greedy as plain_greedy
from crest.selection.kernels import backend

pytestmark = pytest.mark.usefixtures("version")


def make_gradients(r, d, seed=0, dtype=torch.float32):
    return torch.randn(r, d, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_duplicates(r=30, d=4, seed=0):
    gradients = make_gradients(r, d, seed)
    gradients[r // 2 :] = gradients[: r - r // 2]
    return gradients


KINDS = {
    "random": make_gradients(30, 10),
    "many_features": make_gradients(30, 50),
    "duplicates": with_duplicates(),
    "many_duplicate_features": with_duplicates(d=50),
    "one_hot": torch.eye(5)[torch.arange(30) % 5],
    "some_zero": make_gradients(30, 4) * (torch.arange(30) % 3 > 0)[:, None],
    "far_from_zero": make_gradients(30, 40) + 100,
    "tiny_and_large": make_gradients(30, 4) * torch.logspace(0, -8, 30)[:, None],
    "one_feature": (make_gradients(30, 1) * 8).round(),
}


@pytest.mark.parametrize("method", ["exact", "matrix-free", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradients_of_the_caller_stay_as_they_are(dtype, method):
    gradients = make_gradients(60, 40, dtype=dtype) + 3
    before = gradients.clone()
    facility_location(gradients, 5, method=method)
    assert torch.equal(gradients, before)


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 29, 30])
@pytest.mark.parametrize("kind", KINDS)
def test_picks_and_cluster_sizes_are_those_of_the_definition(kind, batch_size, method):
    gradients = KINDS[kind]
    indices, sizes = facility_location(gradients, batch_size, method=method)
    assert indices.tolist() == reference.greedy(gradients, batch_size)
    assert sizes.tolist() == reference.cluster_sizes(gradients, indices.tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_floating_dtype_gives_the_picks_of_its_own_values(dtype):
    gradients = make_gradients(40, 6, dtype=dtype)
    indices, sizes = facility_location(gradients, 10)
    assert indices.tolist() == reference.greedy(gradients, 10)
    assert indices.dtype == sizes.dtype == torch.int64


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_the_gradients_does_not_matter(scale):
    gradients = make_gradients(40, 6)
    scaled = gradients * torch.tensor(scale, dtype=torch.float64)
    for rows in (scaled, scaled.float()):
        assert facility_location(rows, 10).indices.tolist() == reference.greedy(rows, 10)


@pytest.mark.parametrize("r", range(1, 11))
def test_greedy_reaches_the_guaranteed_share_of_the_best_coreset(r):
    gradients = make_gradients(r, 3, seed=r)
    for batch_size in range(1, r + 1):
        picked = facility_location(gradients, batch_size).indices.tolist()
        best = reference.best_coverage(gradients, batch_size)
        assert reference.coverage(gradients, picked) >= (1 - 1 / math.e) * best - 1e-6


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=8),
    share=st.floats(0, 1),
)
def test_lattices_full_of_ties_are_covered_exactly_and_reproducibly(rows, share):
    gradients = torch.tensor(rows, dtype=torch.float32)
    batch_size = max(1, round(share * len(rows)))
    indices, sizes = facility_location(gradients, batch_size)
    picked = indices.tolist()
    best = reference.best_coverage(gradients, batch_size)
    assert reference.coverage(gradients, picked) >= (1 - 1 / math.e) * best - 1e-6
    assert len(set(picked)) == batch_size
    assert sizes.tolist() == reference.cluster_sizes(gradients, picked)
    gains = [reference.coverage(gradients, picked[:k]) for k in range(1, batch_size + 1)]
    steps = [after - before for before, after in zip([0.0, *gains], gains, strict=False)]
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(steps))


@pytest.mark.parametrize("method", ["exact", "matrix-free", "stochastic"])
def test_equal_rows_give_the_lowest_rows_once_each(method):
    indices, sizes = facility_location(torch.ones(6, 3), 6, method=method)
    assert sorted(indices.tolist()) == list(range(6))
    assert sizes.tolist() == [1] * 6
    indices, sizes = facility_location(torch.ones(6, 3), 2, method=method)
    assert sizes.tolist() == [5, 1]


def test_permuting_rows_permutes_picks():
    gradients = make_gradients(60, 8)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    # Unequal weights, for two rows that have become each other's nearest tie without.
    weights = make_gradients(60, 1, seed=2).exp().squeeze(1)
    direct = facility_location(gradients, 40, weights=weights)
    permuted = facility_location(gradients[order], 40, weights=weights[order])
    assert order[permuted.indices].tolist() == direct.indices.tolist()
    assert permuted.cluster_sizes.tolist() == direct.cluster_sizes.tolist()


@pytest.mark.parametrize("d", [5, 50])
def test_a_batch_of_subsets_is_each_subset(d):
    gradients = torch.stack([make_gradients(50, d, seed) for seed in range(5)])
    together = facility_location(gradients, 12)
    assert together.indices.shape == together.cluster_sizes.shape == (5, 12)
    for p in range(5):
        alone = facility_location(gradients[p], 12)
        assert torch.equal(alone.indices, together.indices[p])
        assert torch.equal(alone.cluster_sizes, together.cluster_sizes[p])


@pytest.mark.parametrize("kind", KINDS)
def test_distances_may_be_given_instead(kind):
    gradients = KINDS[kind]
    distances = reference.distance_matrix(gradients)
    for dtype in (torch.float32, torch.float64):
        rounded = distances.to(dtype)
        before = rounded.clone()
        indices, sizes = facility_location(distances=rounded, batch_size=7)
        assert indices.tolist() == reference.greedy_of_distances(rounded, 7)
        assert sizes.sum() == 30
        assert torch.equal(rounded, before)


@pytest.mark.parametrize("octaves", [1, 4, 7, 10, 16])
def test_distances_of_any_spread_give_the_picks_of_the_definition(octaves):
    for seed in range(5):
        draws = torch.rand(60, 60, generator=torch.Generator().manual_seed(seed))
        distances = ((draws + draws.T) / 2 * octaves).exp2().fill_diagonal_(0)
        indices, _ = facility_location(distances=distances, batch_size=40)
        assert indices.tolist() == reference.greedy_of_distances(distances, 40)


def test_rows_longer_than_the_nearest_cache_change_no_pick():
    gradients = make_gradients(1101, 3)
    indices, sizes = facility_location(gradients, 15)
    assert indices.tolist() == reference.greedy(gradients, 15)
    assert sizes.tolist() == reference.cluster_sizes(gradients, indices.tolist())


@pytest.mark.parametrize("of", ["gradients", "distances"])
def test_subsets_with_and_without_tiny_distances_may_share_a_batch(of):
    kinds = ["random", "tiny_and_large", "random", "duplicates"]
    gradients = torch.stack([KINDS[kind][:, :4] for kind in kinds])
    if of == "gradients":
        indices, _ = facility_location(gradients, 9)
    else:
        distances = torch.stack([reference.distance_matrix(rows).float() for rows in gradients])
        indices, _ = facility_location(distances=distances, batch_size=9)
    for rows, picked in zip(gradients, indices, strict=True):
        assert picked.tolist() == reference.greedy(rows, 9)


@pytest.mark.parametrize("scale", [1e-38, 1.0, 3e38 / 6], ids="scale={}".format)
def test_distances_may_hold_minus_zeros_and_come_near_the_ends_of_float32(scale):
    gradients = make_gradients(30, 2)
    distances = reference.distance_matrix(gradients)
    expected = reference.greedy_of_distances(distances.float(), 8)
    distances = (distances / distances.max() * 6 * scale).float()
    assert facility_location(distances=distances, batch_size=8).indices.tolist() == expected
    distances.fill_diagonal_(-0.0)
    assert facility_location(distances=distances, batch_size=8).indices.tolist() == expected


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_a_weight_counts_as_so_many_equal_rows(method):
    gradients = make_gradients(20, 4)
    weights = torch.arange(20) % 3 + 1.0
    repeated = gradients.repeat_interleave(weights.long(), dim=0)
    origin = torch.arange(20).repeat_interleave(weights.long())
    weighted = facility_location(gradients, 8, weights=weights, method=method)
    assert weighted.indices.tolist() == origin[facility_location(repeated, 8).indices].tolist()
    assert weighted.indices.tolist() == reference.greedy(gradients, 8, weights)
    assert weighted.cluster_sizes.tolist() == reference.cluster_sizes(
        gradients, weighted.indices.tolist()
    )


@pytest.mark.parametrize("of", ["gradients", "distances"])
def test_each_class_is_picked_from_in_proportion(of):
    gradients = make_gradients(50, 4)
    labels = torch.tensor([7] * 24 + [1] * 15 + [3] * 10 + [9])[torch.randperm(50)]
    if of == "gradients":
        indices, sizes = facility_location(gradients, 12, labels=labels)
    else:
        distances = reference.distance_matrix(gradients).float()
        indices, sizes = facility_location(distances=distances, batch_size=12, labels=labels)
    # 12 * (15, 10, 24, 1) / 50 = 3.6, 2.4, 5.76, 0.24: the two left over go to .76 and .6.
    assert labels[indices].tolist() == [1] * 4 + [3] * 2 + [7] * 6
    assert sizes.sum() == 50
    for label, count in ((1, 4), (3, 2), (7, 6)):
        rows = (labels == label).nonzero().squeeze(1)
        alone = reference.greedy(gradients[rows], count)
        assert indices[labels[indices] == label].tolist() == rows[alone].tolist()


@pytest.mark.parametrize("method", ["exact", "matrix-free"])
def test_classes_and_weights_of_a_batch_may_differ_between_subsets(method):
    gradients = torch.stack([make_gradients(20, 3, seed) for seed in range(2)])
    labels = torch.stack([torch.arange(20) % 2, torch.arange(20) % 5])
    weights = make_gradients(2, 20).exp()
    for extra in ({"labels": labels}, {"weights": weights}, {"labels": labels, "weights": weights}):
        together = facility_location(gradients, 10, method=method, **extra)
        for p in range(2):
            one = {name: values[p] for name, values in extra.items()}
            alone = facility_location(gradients[p], 10, method=method, **one)
            assert torch.equal(alone.indices, together.indices[p])
            assert torch.equal(alone.cluster_sizes, together.cluster_sizes[p])
            if "labels" not in extra:
                assert alone.indices.tolist() == reference.greedy(gradients[p], 10, weights[p])


def test_stochastic_follows_its_generator_and_comes_close_to_greedy():
    gradients = make_gradients(300, 4)
    runs = [
        facility_location(
            gradients, 30, method="stochastic", generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0].indices, runs[1].indices)
    assert not torch.equal(runs[0].indices, runs[2].indices)
    greedy = reference.coverage(gradients, facility_location(gradients, 30).indices.tolist())
    for indices, sizes in runs:
        assert len(set(indices.tolist())) == 30
        assert sizes.tolist() == reference.cluster_sizes(gradients, indices.tolist())
        assert reference.coverage(gradients, indices.tolist()) >= 0.9 * greedy


def test_stochastic_takes_distances_too():
    distances = reference.distance_matrix(make_gradients(30, 4))
    picked = [
        facility_location(
            distances=distances,
            batch_size=20,
            method="stochastic",
            generator=torch.Generator().manual_seed(0),
        )
        for _ in range(2)
    ]
    assert torch.equal(picked[0].indices, picked[1].indices)
    assert picked[0].cluster_sizes.sum() == 30


@pytest.mark.parametrize("d", [6, 50])
def test_large_sets_leave_the_matrix_by_themselves(monkeypatch, d):
    gradients = make_gradients(200, d)
    direct = facility_location(gradients, 20)
    module = sys.modules["crest.selection.facility_location"]  # hidden by its function
    monkeypatch.setattr(module, "_LARGEST_MATRIX", 100)
    rebuilt = facility_location(gradients, 20)
    assert torch.equal(direct.indices, rebuilt.indices)
    assert torch.equal(direct.cluster_sizes, rebuilt.cluster_sizes)


def test_threads_do_not_change_a_pick(monkeypatch):
    kernels = importlib.import_module("crest.selection.kernels.numba_greedy")
    monkeypatch.setattr(kernels, "_WORTH_A_THREAD", 1)
    gradients = torch.stack([with_duplicates(60, 6, seed) for seed in range(4)])
    errors, inputs = gradients.split(3, dim=2)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        exact = facility_location(gradients, 20)
        rebuilt = facility_location(gradients, 20, method="matrix-free")
        results.append((*exact, *rebuilt, last_layer_distances(errors, inputs)))
    for others in results[1:]:
        assert all(torch.equal(*both) for both in zip(others, results[0], strict=True))
    assert torch.equal(results[0][0], results[0][2])


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_fork_does_not_wait_for_threads_of_its_parent(monkeypatch):
    module = importlib.import_module("crest.selection.kernels.numba_greedy")
    monkeypatch.setattr(module, "_WORTH_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    gradients = torch.stack([make_gradients(30, 6, seed) for seed in range(4)]).numpy()

    def pick():
        return module.greedy(torch.from_numpy(gradients), 5, are_features=True, weights=None)

    expected = pick()[0].tolist()
    reader, writer = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: writer.send(pick()[0].tolist())
    )
    child.start()
    try:
        assert reader.poll(60)
        assert reader.recv() == expected
    finally:
        child.kill()
        child.join()


def test_ties_fall_alike_in_every_version():
    gradients = torch.stack([make_gradients(80, 3, seed) for seed in range(2)])
    gradients = (gradients * 4).round() / 4
    indices, sizes = facility_location(gradients, 40)
    for p in range(2):
        picked = indices[p].tolist()
        assert picked == reference.greedy(gradients[p], 40)
        assert sizes[p].tolist() == reference.cluster_sizes(gradients[p], picked)


def test_gradients_that_need_grad_and_strided_ones_are_taken():
    gradients = make_gradients(20, 6)
    expected = facility_location(gradients, 5)
    strided = gradients.T.contiguous().T.requires_grad_()
    assert torch.equal(facility_location(strided, 5).indices, expected.indices)
    with torch.inference_mode():
        assert torch.equal(facility_location(gradients.clone(), 5).indices, expected.indices)


GOOD = make_gradients(8, 3)
NAN = GOOD.clone()
NAN[3, 1] = math.nan
INFINITE = GOOD.clone()
INFINITE[0, 0] = math.inf
SQUARE = reference.distance_matrix(GOOD)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradients": NAN}, "gradients must be finite; got a nan"),
        ({"gradients": INFINITE}, "gradients must be finite"),
        ({"distances": SQUARE * math.nan}, "distances must be finite"),
        ({"distances": SQUARE / 0}, "distances must be finite"),
        ({"distances": SQUARE[:0, :0]}, "none of it empty"),
        ({"distances": SQUARE, "batch_size": 9}, r"batch_size must be in \[1, 8\].*got 9"),
        ({"distances": SQUARE - 1}, "distances must not be negative"),
        ({"distances": GOOD}, r"shape \(r, r\)"),
        ({"gradients": GOOD[:0]}, "none of it empty"),
        ({"gradients": GOOD[0]}, r"shape \(r, d\)"),
        ({"gradients": GOOD.long()}, "floating-point"),
        ({"gradients": GOOD, "distances": SQUARE}, "exactly one of .* got both"),
        ({}, "exactly one of .* got none"),
        ({"gradients": GOOD, "batch_size": 9}, r"batch_size must be in \[1, 8\].*got 9"),
        ({"gradients": GOOD, "batch_size": 0}, r"batch_size must be in \[1, 8\].*got 0"),
        (
            {"gradients": GOOD, "labels": torch.zeros(7).long()},
            "labels must have one entry per row",
        ),
        ({"gradients": GOOD, "labels": torch.zeros(8)}, "labels must be integers"),
        ({"gradients": GOOD, "labels": torch.zeros(8, device="meta").long()}, "device of the rows"),
        ({"gradients": GOOD, "weights": torch.ones(2, 8)}, "weights must have one entry per row"),
        ({"gradients": GOOD, "weights": torch.ones(8, device="meta")}, "device of the rows"),
        ({"gradients": GOOD, "weights": torch.zeros(8)}, "weights must be positive"),
        ({"gradients": GOOD, "weights": torch.arange(8) - 1.0}, "weights must be positive"),
        ({"gradients": GOOD, "weights": torch.full((8,), math.nan)}, "weights must be finite"),
        ({"gradients": GOOD, "method": "lazy"}, "method must be exact, matrix-free or stochastic"),
        ({"distances": SQUARE, "method": "matrix-free"}, "needs gradients"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        facility_location(**{"batch_size": 2, **arguments})


def one_way(entry):
    distances = SQUARE.clone()
    distances[2, 5] += entry
    return distances


@pytest.mark.parametrize("subsets", [0, 3], ids=["one", "several"])
@pytest.mark.parametrize(
    ("distances", "message"),
    [
        (one_way(0.5 * SQUARE.max()), "distances must be symmetric.*from row 2 to 5 and .* back"),
        (SQUARE + torch.eye(8), "distances must have diagonal 0.*Pass .*not similarities"),
        (SQUARE.max() - SQUARE, "distances must have diagonal 0"),
        (one_way(math.nan), "distances must be finite"),
    ],
    ids=["one way", "diagonal", "similarities", "nan"],
)
def test_what_are_no_distances_of_rows_to_each_other_is_refused(distances, message, subsets):
    if subsets:
        distances = torch.stack([SQUARE, SQUARE, distances])
    with pytest.raises(ValueError, match=message):
        facility_location(distances=distances, batch_size=2)


def test_distances_may_be_off_by_rounding():
    gradients = make_gradients(200, 40).float()
    rounded = torch.cdist(gradients, gradients, compute_mode="use_mm_for_euclid_dist")
    noisy = rounded * (1 + 1e-6 * torch.rand(200, 200))
    assert not torch.equal(noisy, noisy.mT)
    facility_location(distances=noisy, batch_size=20)


def test_result_names_its_fields():
    result = facility_location(GOOD, 3)
    assert isinstance(result, Coreset)
    assert result.indices is result[0]


def test_without_numba_there_is_one_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "crest.selection.kernels.numba_greedy", None)
    monkeypatch.delattr("crest.selection.kernels.numba_greedy", raising=False)
    backend._compiled.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="without numba"):
            assert backend.compiled_for(GOOD.device) is None
        assert backend.compiled_for(GOOD.device) is None  # warnings are errors
    finally:
        backend._compiled.cache_clear()


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
@pytest.mark.parametrize("batch_size", [1, 5, 20])
def test_submodlib_finds_the_same_coverage(batch_size):
    submodlib = pytest.importorskip("submodlib")
    gradients = make_gradients(40, 5)
    distances = reference.distance_matrix(gradients)
    peer = submodlib.FacilityLocationFunction(
        n=40, mode="dense", sijs=(distances.max() - distances).numpy(), separate_rep=False
    ).maximize(
        budget=batch_size,
        optimizer="NaiveGreedy",
        stopIfZeroGain=False,
        stopIfNegativeGain=False,
        verbose=False,
        show_progress=False,
    )
    ours = facility_location(gradients, batch_size).indices.tolist()
    assert reference.coverage(gradients, ours) == pytest.approx(
        reference.coverage(gradients, [row for row, _ in peer]), rel=1e-6
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_picks_what_the_cpu_picks(kind):
    gradients = KINDS[kind]
    for method in ("exact", "matrix-free"):
        on_cpu = facility_location(gradients, 7, method=method)
        on_gpu = facility_location(gradients.cuda(), 7, method=method)
        assert on_gpu.indices.device.type == "cuda"
        assert on_gpu.indices.tolist() == on_cpu.indices.tolist()
        assert on_gpu.cluster_sizes.tolist() == on_cpu.cluster_sizes.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_loop_over_picks_never_waits_for_the_gpu():
    errors, inputs = make_gradients(60, 5).cuda(), make_gradients(60, 9, seed=1).cuda()
    distances = last_layer_distances(errors, inputs).unsqueeze(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        plain_greedy(distances, 10, None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
