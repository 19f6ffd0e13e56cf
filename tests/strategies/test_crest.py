"""Algorithm 1 as a whole."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crest
from crest.quadratic import flatten
from crest.strategies.crest.check import TrackRecord
from toys import CRITERION, NoisyData, make_loader, make_model, make_tensors, train


class Bowl(nn.Module):
    """L_i(w) = 1 + sum_k c_k (w_k - 1)^2 for every i: exactly quadratic, diagonal Hessian."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 4, bias=False)

    def forward(self, inputs):
        return self.head(inputs)


def bowl_loss(output, target):
    return 1 + (torch.tensor([0.5, 1.0, 2.0, 4.0]) * (output - 1).square()).sum(1)


def train_bowl(strategy, *, lr, batches=40, loss=bowl_loss):
    torch.manual_seed(0)
    model = Bowl()
    dataset = TensorDataset(torch.ones(64, 1), torch.zeros(64))
    train_loader = DataLoader(dataset, batch_size=8, shuffle=True)
    loader = crest.CoresetLoader(train_loader, model, loss_fn=loss, strategy=strategy, budget=0.5)
    train(loader, model, epochs=batches // 4, lr=lr, criterion=loss)
    return loader.history


def test_on_a_quadratic_loss_nothing_is_selected_again():
    strategy = crest.Crest.paper(exclusion_interval=None, max_coreset_uses=None)
    history = train_bowl(strategy, lr=0.05)
    errors = [r["relative_error"] for r in history.records if "relative_error" in r]
    assert history.updates == 1
    assert len(errors) == 39
    assert max(errors) < 1e-5  # float32 sums


def test_a_linear_model_of_a_quadratic_loss_is_soon_off():
    history = train_bowl(crest.Crest.paper(exclusion_interval=None, curvature="none"), lr=0.05)
    assert history.updates > 1


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum and decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "clipping": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "schedule": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_the_displacement_is_the_real_one_since_the_anchor(optimizer_name):
    model = make_model()
    strategy = crest.Crest.paper(error_threshold=1e9, max_coreset_uses=None)
    loader = make_loader(strategy, model=model, budget=1)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    anchor = flatten(list(model.parameters()))
    expected = []
    for inputs, targets, weights in loader:
        crest.weighted_mean(CRITERION(model(inputs), targets), weights).backward()
        if optimizer_name == "clipping":
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        if optimizer_name == "schedule":
            scheduler.step()
        expected.append(float((flatten(list(model.parameters())) - anchor).norm()))
    checks = [record for record in loader.history.records if "displacement_norm" in record]
    assert loader.history.updates == 1
    assert len(checks) == 24  # the 25 steps less the last one, which nothing follows
    for check in checks:
        assert check["displacement_norm"] == pytest.approx(expected[check["step"] - 1], rel=1e-6)


def test_a_check_that_fails_starts_a_new_round_and_moves_the_anchor():
    model = make_model()
    loader = make_loader(crest.Crest.paper(error_threshold=1e-12), model=model)
    train(loader, model, epochs=5)
    checks = [record for record in loader.history.records if "relative_error" in record]
    assert all(record["updated"] for record in checks)
    # each displacement is one step long, not the way since the first anchor
    way = float(
        (flatten(list(model.parameters())) - flatten(list(make_model().parameters()))).norm()
    )
    assert max(record["displacement_norm"] for record in checks) < way


@pytest.mark.parametrize("check", ["paired", "candidates"])
def test_rho_is_zero_where_nothing_has_moved(check):
    """Eval mode, view and weighting of L0 and L^r agree, with norm, dropout and all."""
    model = make_model(dropout=0.5, norm=True)
    n = 400
    loader = make_loader(
        crest.Crest.paper(subset_size=n, check=check, advanced=crest.CrestAdvanced(min_pool=n)),
        model=model,
        batch_size=100,
        budget=1,
    )
    train(loader, model, lr=0.0)  # BatchNorm statistics move, but only in train mode passes
    (first, *_) = [r for r in loader.history.records if "relative_error" in r]
    # V_p and V_r are both the whole pool: what is left is how far BatchNorm moved
    assert first["predicted_loss"] == pytest.approx(first["anchor_loss"], abs=1e-6)
    model_without = make_model(dropout=0.5)
    loader = make_loader(
        crest.Crest.paper(subset_size=n, check=check, advanced=crest.CrestAdvanced(min_pool=n)),
        model=model_without,
        batch_size=100,
        budget=1,
    )
    train(loader, model_without, lr=0.0)
    errors = [r["relative_error"] for r in loader.history.records if "relative_error" in r]
    assert errors
    assert max(errors) < 1e-5


def test_each_distinct_example_is_read_and_passed_forward_once():
    reads = []

    class Counting(NoisyData):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    strategy = crest.Crest.paper(subset_size=200, advanced=crest.CrestAdvanced(min_pool=200))
    loader = make_loader(strategy, dataset=Counting())
    next(iter(loader))
    # five subsets of 200 from 400: about 388 distinct examples, and some more of V_r
    assert len(reads) == len(set(reads))
    assert 0 <= len(reads) - loader.history.passes["features"]["forward"] < 20
    assert loader.history.passes["check"]["forward"] == 200


@pytest.mark.parametrize("check", ["fresh", "paired", "candidates"])
def test_a_check_passes_only_its_subset_forward(check):
    model = make_model()
    strategy = crest.Crest.paper(
        subset_size=50, check=check, advanced=crest.CrestAdvanced(check_size=40)
    )
    loader = make_loader(strategy, model=model, budget=0.5)
    train(loader, model)
    checks = sum("relative_error" in record for record in loader.history.records)
    if check == "paired":  # at the anchor, too
        checks += loader.history.updates
    assert loader.history.passes["check"] == {"forward": 40 * checks, "backward": 0, "hessian": 0}


def test_coresets_are_kept_whole_and_none_comes_twice_before_all_were_used():
    model = make_model()
    strategy = crest.Crest.paper(error_threshold=1e9, coreset_multiplier=5, max_coreset_uses=None)
    loader = make_loader(strategy, model=model, budget=0.6)
    batches = []
    train(loader, model, on_step=lambda x, y, w: batches.append((x, w)))
    assert len(batches) == 15
    keys = [(x.sum().item(), tuple(w.tolist())) for x, w in batches]
    for start in (0, 5, 10):
        assert set(keys[start : start + 5]) == set(keys[:5])
        assert len(set(keys[start : start + 5])) == 5


def test_cluster_sizes_belong_to_a_coreset_and_not_to_an_example():
    # subsets of 300 from 400 overlap: the same example gets another weight in another coreset
    loader = make_loader(
        crest.Crest.paper(subset_size=300, advanced=crest.CrestAdvanced(min_pool=300))
    )
    next(iter(loader))
    coresets = loader._planner._coresets
    sizes = [batch.weights * 300 / 16 for batch in coresets]
    for size in sizes:
        assert torch.allclose(size, size.round(), atol=1e-4)
        assert float(size.sum()) == pytest.approx(300)
    weights = [dict(zip(b.indices.tolist(), b.weights.tolist(), strict=True)) for b in coresets]
    shared = [
        (one[i], other[i])
        for k, one in enumerate(weights)
        for other in weights[:k]
        for i in one.keys() & other.keys()
    ]
    assert any(a != b for a, b in shared)


@pytest.mark.parametrize(("interval", "uses"), [(1, 1), (3, 1), (3, 2)])
def test_each_coreset_is_trained_on_no_more_often_than_is_allowed(interval, uses):
    model = make_model()
    strategy = crest.Crest.paper(
        curvature="none",  # T_1 is h after the first round
        coreset_multiplier=2,
        interval_multiplier=interval,
        error_threshold=1e9,
        exclusion_interval=None,
        max_coreset_uses=uses,
    )
    loader = make_loader(strategy, model=model, budget=1)
    used = []
    train(loader, model, on_step=lambda inputs, *_: used.append(inputs.sum().item()))
    updates = [record["step"] for record in loader.history.records if record["updated"]]
    first, later = 2 * uses, 2 * interval * uses  # T_1 is 1 in the first round
    assert updates == [0, *range(first, 25, later)]
    assert len(used) == 25
    assert max(used.count(batch) for batch in used) <= uses


def test_the_averages_advance_once_a_round():
    model = make_model()
    loader = make_loader(crest.Crest.paper(), model=model)
    train(loader, model, epochs=8)
    assert loader.history.updates > 1
    assert loader._planner._moments.round == loader.history.updates


def test_learned_examples_leave_for_good_at_multiples_of_the_interval():
    model = make_model()
    loader = make_loader(
        crest.Crest.paper(
            exclusion_interval=5,
            loss_threshold=1.0,
            low_looks=1,
            advanced=crest.CrestAdvanced(min_pool=100),
        ),
        model=model,
        budget=1,
    )
    train(loader, model, epochs=2)
    active = [(record["step"], record["active"]) for record in loader.history.records]
    assert all(count == 400 for step, count in active if step < 5)
    counts = [count for _, count in active]
    assert counts == sorted(counts, reverse=True)
    assert 100 <= counts[-1] < 400
    for (_, before), (step, after) in itertools.pairwise(active):
        if after < before:
            previous = max(s for s, _ in active if s < step)
            assert previous // 5 < step // 5  # a window ended in between


@pytest.mark.parametrize(
    "strategy",
    [
        crest.Crest.paper(exclusion_interval=None, loss_threshold=9),
        crest.Crest(switch_off=False, loss_threshold=9),
    ],
    ids=["asked for", "default"],
)
def test_no_exclusion_keeps_every_example(strategy):
    model = make_model()
    loader = make_loader(strategy, model=model, budget=1)
    train(loader, model, epochs=2)
    assert {record["active"] for record in loader.history.records} == {400}


@pytest.mark.parametrize("features", ["logits", "input", "weight"])
@pytest.mark.parametrize("curvature", ["trainable", "head", "none"])
def test_every_feature_and_scope_trains(features, curvature):
    model = make_model()
    settings = crest.Crest.paper(
        features=features, curvature=curvature, advanced=crest.CrestAdvanced(num_probes=2)
    )
    loader = make_loader(settings, model=model, budget=0.2)
    train(loader, model)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    size = {"head": 32 * 5 + 5}.get(curvature, sum(p.numel() for p in model.parameters()))
    assert loader._planner._anchor.shape == (size,)
    # derivatives of the last layer alone cost nothing beside the forward pass
    assert (loader.history.passes["quadratic"]["hessian"] > 0) == (curvature == "trainable")


def test_a_sample_of_the_coresets_fits_the_model():
    counts = []
    for sample in (None, 2):
        loader = make_loader(crest.Crest.paper(curvature_coresets=sample))
        next(iter(loader))
        counts.append(loader.history.passes["quadratic"]["forward"])
    assert counts == [5 * 16, 2 * 16]


def test_accumulation_gives_every_step_its_own_coresets():
    loader = make_loader(crest.Crest.paper(), accumulation_steps=4)
    next(iter(loader))
    assert loader.history.records[0]["length"] == 1
    assert loader.history.records[0]["num_coresets"] == 20


def test_stratified_subsets_need_labels():
    with pytest.raises(ValueError, match="stratify=True needs the class of each example"):
        make_loader(crest.Crest.paper(advanced=crest.CrestAdvanced(stratify=True)))
    _, targets = make_tensors()
    loader = make_loader(
        crest.Crest.paper(advanced=crest.CrestAdvanced(stratify=True)), labels=targets
    )
    next(iter(loader))
    counts = torch.bincount(targets[loader._examples._indices])
    assert (counts > 0).all()


@pytest.mark.parametrize("features", ["logits", "input", "weight"])
def test_picks_per_class_are_in_proportion(features):
    _, targets = make_tensors()
    strategy = crest.Crest.paper(
        subset_size=400,
        features=features,
        per_class=True,
        advanced=crest.CrestAdvanced(min_pool=400),
    )
    loader = make_loader(strategy, labels=targets)
    next(iter(loader))
    shares = torch.bincount(targets, minlength=5) * 16 / 400
    for coreset in loader._planner._coresets:
        counts = torch.bincount(targets[coreset.indices], minlength=5)
        assert (counts - shares).abs().max() < 1
        assert float(coreset.weights.sum()) == pytest.approx(16)


def test_picks_per_class_bound_the_effective_batch():
    """Where all gradients are equal, one pick stands for all but the others."""
    _, targets = make_tensors()
    effective = {}
    for per_class in (False, True):
        model = make_model()
        nn.init.zeros_(model[-1].weight)  # dL/dh is 0 for all
        strategy = crest.Crest.paper(
            subset_size=80,
            features="input",
            per_class=per_class,
            advanced=crest.CrestAdvanced(stratify=True),
        )
        loader = make_loader(strategy, model=model, labels=targets)
        next(iter(loader))
        effective[per_class] = loader.history.records[0]["effective_batch"]
    assert effective[False] == pytest.approx(80**2 / (65**2 + 15))
    assert effective[True] > 2 * effective[False]


def first_round(per_class, **options):
    strategy = crest.Crest.paper(subset_size=80, per_class=per_class)
    loader = make_loader(strategy, **options)
    next(iter(loader))
    return [(c.indices.tolist(), c.weights.tolist()) for c in loader._planner._coresets]


@pytest.mark.parametrize(("batch_size", "is_per_class"), [(16, True), (5, True), (4, False)])
def test_the_paper_picks_per_class_where_classes_are_read_and_no_more_than_picks(
    batch_size, is_per_class
):
    _, targets = make_tensors()
    by_itself = first_round(None, batch_size=batch_size)
    for told in (False, True):
        same = first_round(told, labels=targets, batch_size=batch_size) == by_itself
        assert same is (told is is_per_class)


def test_where_there_are_no_classes_the_paper_picks_from_whole_subsets():
    inputs, targets = make_tensors()
    regression = {
        "dataset": TensorDataset(inputs, targets.float()),
        "loss_fn": lambda outputs, y: (outputs[:, 0] - y).square(),
    }
    assert first_round(None, **regression) == first_round(False, **regression)


def test_picks_per_class_need_labels():
    with pytest.raises(ValueError, match="per_class=True needs the class of each example"):
        make_loader(crest.Crest.paper(per_class=True))


def test_subsets_of_shared_candidates_are_stratified_too():
    _, targets = make_tensors()
    labels = (targets > 1).long()
    strategy = crest.Crest(
        subset_size=40,
        num_candidates=200,
        switch_off=False,
        advanced=crest.CrestAdvanced(stratify=True),
    )
    loader = make_loader(strategy, labels=labels)
    next(iter(loader))
    subsets = torch.cat([loader._planner._draw_subsets_of_round() for _ in range(20)])
    # by at most one for the odd one of the candidates, and one for that of the subset
    assert (labels[subsets].sum(1) - 40 * labels.float().mean()).abs().max() < 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset_size": 0}, "subset_size must be >= 1 or None; got 0"),
        ({"coreset_multiplier": 0}, "coreset_multiplier must be > 0"),
        ({"error_threshold": -1}, "error_threshold must be >= 0"),
        (
            {"error_threshold": math.nan},
            "error_threshold must be >= 0 and finite or .auto.; got nan",
        ),
        ({"interval_multiplier": 0}, "interval_multiplier must be > 0"),
        ({"exclusion_interval": 0}, "exclusion_interval must be >= 1 or None"),
        ({"loss_threshold": -0.1}, "loss_threshold must be >= 0"),
        ({"low_looks": 0}, "low_looks must be >= 1"),
        ({"check": "twice"}, "check must be paired, fresh or candidates; got 'twice'"),
        ({"betas": (0.9, 1.0)}, r"betas must be two values in \[0, 1\)"),
        ({"features": "inputs"}, "features must be logits, input or weight; got 'inputs'"),
        ({"curvature": "all"}, "curvature must be trainable, head or none; got 'all'"),
        ({"curvature_coresets": 0}, "curvature_coresets must be >= 1 or None"),
        ({"max_coreset_uses": 0}, "max_coreset_uses must be >= 1 and"),
        (
            {"error_threshold": "Auto"},
            "error_threshold must be >= 0 and finite or .auto.; got 'Auto'",
        ),
        ({"select_until": 0}, "select_until must be >= 1 or None; got 0"),
        (
            {"subset_size": 100, "num_candidates": 50},
            "num_candidates must be at least subset_size, 100; got 50",
        ),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        crest.Crest.paper(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_probes": 0}, "num_probes must be >= 1"),
        ({"max_check_interval": 0}, "max_check_interval must be >= 1"),
        ({"max_coresets": 0}, "max_coresets must be >= 1"),
        ({"check_size": 0}, "check_size must be >= 1 or None"),
        ({"readmit_after": 0}, "readmit_after must be >= 1"),
        ({"probe_interval": 0}, "probe_interval must be >= 1"),
        ({"forward_price": 0}, "forward_price must be > 0"),
    ],
    ids=str,
)
def test_advanced_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        crest.CrestAdvanced(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"subset_size": 10}, "batch_size must be at most subset_size, 10; got 16"),
        ({"subset_size": 500}, "subset_size must be at most the number of examples, 400; got 500"),
        ({"advanced": crest.CrestAdvanced(min_pool=10)}, r"min_pool must be in \[48, 400\]"),
        ({"num_candidates": 20}, r"num_candidates must be in \[48, 400\], subset_size to the"),
        ({"num_candidates": 401}, r"num_candidates must be in \[48, 400\]"),
        ({"advanced": crest.CrestAdvanced(check_size=60)}, r"check_size must be in \[1, 48\]"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_task_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_loader(crest.Crest.paper(**settings))


def test_candidates_are_shared_by_all_subsets_of_a_round():
    strategy = crest.Crest.paper(subset_size=32, num_candidates=60)
    loader = make_loader(strategy)
    next(iter(loader))
    assert 32 < loader.history.passes["features"]["forward"] <= 60
    coresets = loader._planner._coresets
    assert len({tuple(sorted(coreset.indices.tolist())) for coreset in coresets}) > 1
    picked = torch.cat([coreset.indices for coreset in coresets]).unique()
    assert torch.isin(picked, loader._examples._indices).all()


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "batch norm"])
def test_a_paired_check_sees_no_sampling_noise(norm):
    """Where nothing moves, two fresh subsets differ and one that is measured twice does not."""
    errors, updates = {}, {}
    for check in ("paired", "candidates", "fresh"):
        model = make_model(norm=norm)
        strategy = crest.Crest.paper(
            check=check,
            subset_size=48,
            error_threshold=0.02,  # losses of a new network differ little from each other
            max_coreset_uses=None,
            advanced=crest.CrestAdvanced(check_size=16),
        )
        loader = make_loader(strategy, model=model, dataset=NoisyData(), budget=0.3)
        train(loader, model, lr=0.0)  # running statistics move, which nothing here goes by
        checks = [r for r in loader.history.records if "relative_error" in r]
        errors[check] = max(record["relative_error"] for record in checks)
        updates[check] = loader.history.updates
    assert errors["paired"] == 0
    assert errors["candidates"] < 1e-6  # passes of other sizes round in other ways
    assert errors["fresh"] > 0.02
    assert (updates["paired"], updates["candidates"]) == (1, 1)
    assert updates["fresh"] > 1


def test_a_paired_check_goes_on_with_examples_that_were_excluded_since():
    model = make_model()
    loader = make_loader(crest.Crest.paper(error_threshold=1e9), model=model, budget=0.5)
    batches = iter(loader)
    next(batches)
    planner = loader._planner
    planner._pool.active[planner._check_subset[:5]] = False
    with torch.no_grad():
        next(model.parameters()).add_(0)  # a step that changes nothing
    next(batches)
    record = loader.history.records[-1]
    assert record["relative_error"] == 0  # V_r is as it was
    assert not record["updated"]


@pytest.mark.parametrize("check", ["fresh", "paired", "candidates"])
def test_a_run_is_resumed_between_anchor_and_check(check):
    strategy = crest.Crest.paper(check=check, error_threshold=0.5, exclusion_interval=2)

    def run(break_at):
        model = make_model(norm=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loader = make_loader(strategy, model=model, dataset=NoisyData(), budget=0.4)
        for step, (inputs, targets, weights) in enumerate(loader, 1):
            optimizer.zero_grad()
            crest.weighted_mean(CRITERION(model(inputs), targets), weights).backward()
            optimizer.step()
            if step == break_at:
                break
        return loader, model

    whole, _ = run(None)
    saved, model = run(3)
    # The state inside the loop, in a loader over the same model.
    state = saved.state_dict()
    assert state["planner"]["check_subset"].shape == saved._planner._check_subset.shape
    resumed = make_loader(strategy, model=model, dataset=NoisyData(), budget=0.4)
    resumed.load_state_dict(state)
    next(iter(resumed))
    before = [record for record in whole.history.records if record["step"] == 3]
    assert resumed.history.records[-1].get("check_loss") == before[-1].get("check_loss")
    assert resumed.history.records[-1]["updated"] == before[-1]["updated"]


def test_a_paired_check_reads_nothing():
    reads = []

    class Counting(NoisyData):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    model = make_model()
    strategy = crest.Crest.paper(check="candidates", error_threshold=1e9)
    loader = make_loader(strategy, model=model, dataset=Counting(), budget=0.3)
    train(loader, model)
    assert sum("relative_error" in record for record in loader.history.records) > 1
    assert len(reads) == loader.history.passes["features"]["forward"]


def train_with_batch_norm(steps=100, **settings):
    model = make_model(norm=True)
    strategy = crest.Crest.paper(
        exclusion_interval=None, error_threshold=0, betas=(0.9, 0.9), **settings
    )
    loader = make_loader(strategy, model=model, budget=1)
    train(loader, model, epochs=math.ceil(steps / 25))
    return loader


def test_check_intervals_grow_with_batch_statistics():
    """In eval mode at step 0 H_0 is that of a net whose statistics are those of no data."""
    loader = train_with_batch_norm()
    intervals = [record["check_interval"] for record in loader.history.records]
    assert intervals[0] == 1
    assert max(intervals) > 1
    assert loader._planner._schedule.state_dict()["first_norm"] == pytest.approx(
        loader.history.records[0]["curvature_norm"]
    )


def test_in_eval_mode_the_measure_of_curvature_is_that_of_settled_statistics():
    loader = train_with_batch_norm(steps=50, batch_statistics=False)
    records = loader.history.records
    # (1 - 0.1)^29 is the first power below 5 %
    settled = next(record for record in records if record["step"] >= 29)
    first_norm = loader._planner._schedule.state_dict()["first_norm"]
    assert first_norm == pytest.approx(settled["curvature_norm"])
    assert all(record["check_interval"] == 1 for record in records if record["step"] <= 29)


def test_the_paper_looks_by_batch_statistics_where_a_model_has_some():
    losses = {}
    for by_batch in (True, False):
        model = make_model(norm=True)
        inputs, targets = make_tensors(100)
        loader = make_loader(
            crest.Crest.paper(
                subset_size=100,
                batch_statistics=by_batch,
                advanced=crest.CrestAdvanced(min_pool=100),
            ),
            model=model,
            dataset=TensorDataset(inputs, targets),
        )
        before = {name: value.clone() for name, value in model.state_dict().items()}
        next(iter(loader))
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        model.train(by_batch)
        losses[by_batch] = float(CRITERION(model(inputs), targets).detach().mean())
        record = loader.history.records[0]
        assert record["selected_loss"] == pytest.approx(losses[by_batch], rel=1e-5)
        assert loader._planner._model.loss == pytest.approx(losses[by_batch], rel=1e-5)
    assert losses[True] != pytest.approx(losses[False], rel=1e-3)


def without_norm():
    return make_model()


def with_layer_norm():
    model = make_model()
    model[1] = nn.LayerNorm(32)
    return model


def with_frozen_statistics():
    model = make_model(norm=True)
    model[1].eval()
    return model


@pytest.mark.parametrize("make", [without_norm, with_layer_norm, with_frozen_statistics])
def test_without_statistics_of_a_batch_the_paper_does_the_same_in_both_modes(make):
    plans = []
    for by_batch in (True, False):
        model = make()
        loader = make_loader(crest.Crest.paper(batch_statistics=by_batch), model=model)
        next(iter(loader))
        plans.append(loader.handed_out)
        assert loader._planner._schedule.state_dict()["first_norm"] > 0
        assert model[1].training != (make is with_frozen_statistics)
    assert torch.equal(plans[0].indices, plans[1].indices)
    assert torch.equal(plans[0].weights, plans[1].weights)


def test_a_pass_of_one_example_has_no_batch_statistics():
    strategy = crest.Crest.paper(advanced=crest.CrestAdvanced(check_size=1))
    with pytest.raises(ValueError, match="batch statistics need more than one value of each"):
        next(iter(make_loader(strategy, model=make_model(norm=True))))
    strategy = crest.Crest.paper(batch_statistics=False, advanced=crest.CrestAdvanced(check_size=1))
    next(iter(make_loader(strategy, model=make_model(norm=True))))


def test_examples_leave_by_losses_of_batch_statistics():
    model = make_model(norm=True)
    loader = make_loader(
        crest.Crest.paper(exclusion_interval=4, loss_threshold=1.0, error_threshold=0),
        model=model,
        budget=1,
    )
    train(loader, model, epochs=2)
    assert not loader.active.all()


def valley_loss(output, target):
    return 1 + output.sum(1).square() / 2  # of all curvature a quarter is on the diagonal


@pytest.mark.parametrize("loss_model", ["quadratic", "best"])
def test_the_part_of_the_loss_model_that_predicted_best_is_asked(loss_model):
    """At a large rate SGD jumps across a valley: the loss stays, and F says that it moves."""
    strategy = crest.Crest.paper(
        loss_model=loss_model, subset_size=8, error_threshold=0.05, exclusion_interval=None
    )
    history = train_bowl(strategy, lr=0.499, loss=valley_loss)  # 1 / 4 of the largest is 0.5
    checks = [record for record in history.records if "relative_error" in record]
    parts = ("error_constant", "error_linear", "error_quadratic")
    assert all(r["relative_error"] == r[parts[r["order"]]] for r in checks)
    assert max(r["error_constant"] for r in checks) < 0.05
    assert min(r["error_quadratic"] for r in checks) > 0.05
    if loss_model == "quadratic":
        assert all(r["updated"] for r in checks)
    else:
        assert [r["order"] for r in checks] == [2] + [0] * (len(checks) - 1)
        assert [r["updated"] for r in checks] == [True] + [False] * (len(checks) - 1)


def test_a_loss_that_is_quadratic_is_predicted_by_all_of_the_model():
    strategy = crest.Crest.paper(subset_size=8, exclusion_interval=None, max_coreset_uses=None)
    history = train_bowl(strategy, lr=0.01)
    checks = [record for record in history.records if "relative_error" in record]
    assert {record["order"] for record in checks} == {2}


@pytest.mark.parametrize("interval", [1, 3])
def test_curvature_is_taken_in_every_kth_round_and_stays_in_between(interval):
    model = make_model()
    strategy = crest.Crest.paper(
        subset_size=32,
        error_threshold=1e-9,  # a round after each check
        curvature_coresets=1,
        advanced=crest.CrestAdvanced(curvature_interval=interval, max_check_interval=1),
    )
    loader = make_loader(strategy, model=model, budget=1)
    train(loader, model, epochs=2)
    norms = [r["curvature_norm"] for r in loader.history.records if r["updated"]]
    assert len(norms) > 6
    for rounds, (before, now) in enumerate(itertools.pairwise(norms), 1):
        assert (before == now) == (rounds % interval != 0), rounds
    gradients = [r["linear_term"] for r in loader.history.records if "linear_term" in r]
    assert len(set(gradients)) == len(gradients), "a gradient in each round"


def test_a_track_record_is_that_of_the_last_checks_and_prefers_the_whole_model():
    record = TrackRecord()
    assert record.order == 2
    record.observe([0.2, 0.1, 0.1])
    assert record.order == 2
    for _ in range(10):
        record.observe([0.1, 0.3, 5.0])
    assert record.order == 0
    again = TrackRecord()
    again.load_state_dict(record.state_dict())
    for _ in range(30):
        again.observe([0.3, 0.0, 0.1])
    assert again.order == 1
    assert record.order == 0


def test_an_automatic_threshold_is_the_mean_error_of_the_first_five_regions():
    model = make_model()
    loader = make_loader(crest.Crest.paper(error_threshold="auto"), model=model)
    train(loader, model, epochs=8)
    checks = [record for record in loader.history.records if "relative_error" in record]
    errors = [record["relative_error"] for record in checks]
    assert all(record["updated"] for record in checks[:5])
    threshold = sum(errors[:5]) / 5
    later = checks[5:]
    assert [record["updated"] for record in later] == [e > threshold for e in errors[5:]]
    assert len({record["updated"] for record in later}) == 2


@pytest.mark.parametrize("threshold", [0.0, 10.0])
def test_layers_may_be_unfrozen_and_frozen_along_the_way(threshold):
    model = make_model()
    model[0].requires_grad_(False)
    strategy = crest.Crest.paper(error_threshold=threshold, interval_multiplier=3)
    loader = make_loader(strategy, model=model, budget=0.24)  # 6 steps
    train(loader, model)
    before = len(loader.history.records)
    for frozen in (False, True):
        for parameter in model[0].parameters():
            parameter.requires_grad_(not frozen)
        train(loader, model)
        record = loader.history.records[before]
        assert record["updated"]
        assert "relative_error" not in record  # there is nothing to compare with
        assert record["num_coresets"] == 5  # T_1 is 1 again, and P is b
        before = len(loader.history.records)


def test_another_layer_of_the_same_size_begins_anew():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5)
    )
    model[2].requires_grad_(False)
    strategy = crest.Crest.paper(error_threshold=10.0)
    loader = make_loader(strategy, model=model, budget=0.24)
    train(loader, model)
    before = len(loader.history.records)
    model[0].requires_grad_(False)
    model[2].requires_grad_(True)
    train(loader, model)
    assert loader.history.records[before]["updated"]


def test_a_threshold_of_zero_selects_after_every_region_and_checks_nothing():
    model = make_model()
    loader = make_loader(crest.Crest.paper(error_threshold=0), model=model)
    train(loader, model, epochs=4)
    assert all(record["updated"] for record in loader.history.records)
    assert loader.history.passes["check"]["forward"] == 0


def test_without_curvature_the_check_interval_is_h():
    model = make_model()
    strategy = crest.Crest.paper(curvature="none", interval_multiplier=3.0, error_threshold=0)
    loader = make_loader(strategy, model=model)
    train(loader, model, epochs=6)
    assert [record["check_interval"] for record in loader.history.records[:4]] == [1, 3, 3, 3]
    # and where nothing is checked either, nothing is modelled
    assert loader.history.passes["quadratic"]["forward"] == 0


def test_selection_that_does_not_pay_gives_way_to_random_batches_and_is_tried_again():
    model = make_model()
    strategy = crest.Crest(advanced=crest.CrestAdvanced(forward_price=10.0, probe_interval=3))
    loader = make_loader(strategy, model=model, budget=1)
    weights = []
    train(loader, model, epochs=2, on_step=lambda x, y, w: weights.append(w))
    records = loader.history.records
    assert not any(record["selected"] for record in records)
    assert [record["length"] for record in records][:4] == [3, 6, 12, 24]  # ever less often
    assert all((weight == 1).all() for weight in weights)
    assert loader.history.updates == 0
    # a probe is one round of forward passes and nothing else
    assert loader.history.costs["quadratic"] == loader.history.costs["check"] == 0


def test_random_batches_between_probes_cover_the_pool_before_they_repeat():
    dataset = TensorDataset(torch.arange(400.0)[:, None].expand(-1, 20), make_tensors()[1])
    strategy = crest.Crest(advanced=crest.CrestAdvanced(forward_price=10.0, probe_interval=5))
    loader = make_loader(strategy, dataset=dataset, budget=1)
    seen = torch.cat([inputs[:, 0] for inputs, _, _ in loader])
    assert seen.sort().values.tolist() == list(range(400))


def test_random_batches_hold_nothing_that_was_excluded():
    model = make_model()
    strategy = crest.Crest(
        subset_size=64,
        exclusion_interval=5,
        loss_threshold=1.0,
        low_looks=1,
        advanced=crest.CrestAdvanced(forward_price=10, probe_interval=3),
    )
    loader = make_loader(strategy, model=model, budget=1)
    active, excluded = [], []

    def look(*_):
        active.append(int(loader.active.sum()))
        excluded.append(bool((~loader.active[loader.handed_out.indices]).any()))

    train(loader, model, epochs=6, on_step=look)
    assert active[-1] < 350
    assert not any(excluded)


def test_selection_goes_on_where_it_pays():
    model = make_model()
    loader = make_loader(
        crest.Crest(advanced=crest.CrestAdvanced(forward_price=1e-3)), model=model, budget=1
    )
    train(loader, model, epochs=2)
    assert all(record["selected"] for record in loader.history.records)
    for record in loader.history.records:
        assert record["worth"] == pytest.approx(record["gradient_error"] ** -0.2)
        assert record["worth"] >= record["price"]


@pytest.mark.parametrize(
    "strategy",
    [
        crest.Crest(select_until=7, advanced=crest.CrestAdvanced(forward_price=1e-3)),
        crest.Crest.paper(select_until=7, error_threshold=1e9, interval_multiplier=3),
    ],
    ids=["anew", "kept"],
)
def test_from_select_until_on_batches_are_random_and_nothing_is_observed(strategy):
    model = make_model()
    loader = make_loader(strategy, model=model, budget=1)
    weights = []
    train(loader, model, epochs=1, on_step=lambda x, y, w: weights.append(w))
    records, passes = loader.history.records, loader.history.passes
    selected = sum(record["length"] for record in records if record["selected"])
    assert 7 <= selected <= 9  # a region that was begun is ended
    weighted = [bool((weight != 1).any()) for weight in weights]
    assert weighted == [step < selected for step in range(25)]
    observed = {name: dict(counts) for name, counts in passes.items() if name != "train"}
    train(loader, model, epochs=3)
    assert observed == {name: counts for name, counts in passes.items() if name != "train"}
    assert not loader._examples._held


def test_an_unknown_feature_of_greedy_is_refused():
    with pytest.raises(ValueError, match="features must be logits, input or weight; got 'x'"):
        crest.GreedyMiniBatch(features="x")
