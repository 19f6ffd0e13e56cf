"""Several processes plan alike, and each trains on its own part of each batch."""

import copy
import itertools
import warnings

import pytest
import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import crest
from processes import run_on
from toys import CRITERION, NoisyData

N, GLOBAL = 96, 12  # examples, and those of a batch of all processes together

STRATEGIES = {
    "random": crest.Random(),
    "full": crest.Full(),
    "greedy": crest.GreedyMiniBatch(),
    "paper": crest.Crest.paper(subset_size=30, error_threshold=0.2, exclusion_interval=3),
    "head": crest.Crest(subset_size=30, error_threshold=0.2, curvature="head", switch_off=False),
    "backprop": crest.SelectiveBackprop(),
    "adacore": crest.AdaCore(subset_fraction=0.5),
    "pruning": crest.LossPruning(),
}


def world_size():
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank_now():
    return distributed.get_rank() if distributed.is_initialized() else 0


def make_data(n=N):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return inputs, (inputs @ torch.randn(6, 3, generator=generator, dtype=torch.float64)).argmax(1)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def make(strategy, model, data=None, *, size=GLOBAL, drop_last=False, **options):
    data = TensorDataset(*make_data()) if data is None else data
    options.setdefault("budget", 0.5)
    train_loader = DataLoader(
        data,
        size // world_size(),
        shuffle=True,
        drop_last=drop_last,
        generator=torch.Generator().manual_seed(3),
    )
    return crest.CoresetLoader(train_loader, model, loss_fn=CRITERION, strategy=strategy, **options)


def in_silence(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is trained on
        return function(*arguments)


def batches_at_fixed_parameters(strategies, epochs=2):
    found = {}
    for name, strategy in strategies.items():
        loader = make(strategy, make_model())
        batches = [loader.handed_out.indices.tolist() for _ in range(epochs) for _ in loader]
        found[name] = batches, len(loader), loader.history.cost
    return found


def test_one_two_and_three_processes_train_on_the_same_batches():
    (alone,) = run_on(1, in_silence, batches_at_fixed_parameters, STRATEGIES)
    for world in (2, 3):
        answers = run_on(world, in_silence, batches_at_fixed_parameters, STRATEGIES)
        for name in STRATEGIES:
            parts = [answer[name][0] for answer in answers]
            for whole, *of_each in zip(alone[name][0], *parts, strict=True):
                assert [len(part) for part in of_each] == [GLOBAL // world] * world, name
                assert sorted(itertools.chain(*of_each)) == sorted(whole), name
            for answer in answers:
                assert answer[name][1:] == pytest.approx(alone[name][1:]), name


def train(strategy, epochs=2, *, n=N, size=GLOBAL, **options):
    """The loop of the README under DistributedDataParallel."""
    model = make_model()
    ddp = nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model
    loader = make(strategy, ddp, TensorDataset(*make_data(n)), size=size, **options)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    seen = []
    for _ in range(epochs):
        for inputs, targets, weights in loader:
            loss = crest.weighted_mean(CRITERION(ddp(inputs), targets), weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            used = loader.handed_out.indices[weights > 0]
            seen.append(used.tolist())
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    return flat, seen, loader.history.records, loader.state_dict()


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(("n", "drop_last"), [(97, False), (88, False), (94, True)])
def test_training_is_that_of_one_process_on_the_whole_batch(world, n, drop_last):
    """Sizes that do not divide: the last batch has 1, 4 or no examples."""
    options = {"n": n, "budget": 1.0, "drop_last": drop_last}
    ((alone, batches, _, _),) = run_on(1, train_with, crest.Random(), options)
    answers = run_on(world, train_with, crest.Random(), options)
    for flat, _, _, _ in answers:
        assert torch.equal(flat, answers[0][0])
        torch.testing.assert_close(flat, alone, rtol=1e-9, atol=1e-12)
    for whole, *parts in zip(batches, *(seen for _, seen, _, _ in answers), strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(whole)


def train_with(strategy, options):
    return train(strategy, **options)


@pytest.mark.parametrize(
    "strategy",
    [crest.OnlineSelection(), crest.RememberedGradients(), STRATEGIES["paper"]],
    ids=lambda strategy: type(strategy).__name__,
)
def test_what_training_shows_one_process_all_know(strategy):
    options = {"epochs": 6}
    ((alone, batches, _, _),) = run_on(1, train_with, strategy, options)
    answers = run_on(2, train_with, strategy, options)
    last = answers[0][2][-1]
    assert last["selected"] or last["rule"] == "chance"  # all was seen, and classes are few
    planners = [state["planner"] for _, _, _, state in answers]
    same(*planners)
    for flat, *_ in answers:
        torch.testing.assert_close(flat, alone, rtol=1e-4, atol=1e-5)
    for whole, *parts in zip(batches, *(seen for _, seen, _, _ in answers), strict=True):
        assert sorted(itertools.chain(*parts)) == sorted(whole)


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    else:
        assert one == other or (one != one and other != other)


def train_spread(strategy):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    mesh = init_device_mesh("cpu", (world_size(),))
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    loader, optimizer = make(strategy, model), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(6):
        for inputs, targets, weights in loader:
            optimizer.zero_grad()
            crest.weighted_mean(CRITERION(model(inputs), targets), weights).backward()
            optimizer.step()
    return torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])


def test_a_model_spread_by_fsdp_is_learned_from():
    ((alone, *_),) = run_on(1, train_with, crest.OnlineSelection(), {"epochs": 6})
    for flat in run_on(2, in_silence, train_spread, crest.OnlineSelection()):
        torch.testing.assert_close(flat, alone, rtol=1e-4, atol=1e-5)


def test_a_model_spread_by_fsdp_is_not_looked_at():
    for answer in run_on(2, in_silence, train_spread, crest.GreedyMiniBatch()):
        assert "must learn from training, and not look at the model, where FSDP" in answer


def noisy_plans():
    model = make_model()

    def loss_fn(output, target):
        return CRITERION(output, target) * (1 + 1e-3 * rank_now())

    loader = crest.CoresetLoader(
        DataLoader(TensorDataset(*make_data()), 6), model, loss_fn=loss_fn,
        strategy=STRATEGIES["paper"], budget=1.0,
    )  # fmt: skip
    for _ in range(3):
        for _ in loader:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.01)
    return [record.get("relative_error") for record in loader.history.records]


def test_noise_of_one_process_sends_all_the_same_way():
    one, other = run_on(2, in_silence, noisy_plans)
    assert one == other
    assert sum(error is not None for error in one) > 1


def views_and_seeds():
    loader = make(crest.Random(), nn.Linear(20, 5), NoisyData(96))
    (inputs, _, _), indices = next(iter(loader)), loader.handed_out.indices
    return inputs - loader._train_loader.dataset.inputs[indices]


def test_processes_draw_views_of_their_own():
    one, other = run_on(2, views_and_seeds)
    assert not torch.isclose(one[0], other[0]).any()


def lengths(drop_last):
    data = TensorDataset(*make_data())
    sampler = DistributedSampler(data, shuffle=True)
    train_loader = DataLoader(data, 5, sampler=sampler, drop_last=drop_last)
    plain = DataLoader(data, 5, shuffle=True, drop_last=drop_last)
    loaders = [
        crest.CoresetLoader(one, make_model(), loss_fn=CRITERION, strategy=strategy, budget=1.0)
        for one, strategy in [
            (train_loader, crest.Random()),
            (plain, crest.Random()),
            (train_loader, crest.Full()),
            (plain, crest.Full()),
        ]
    ]
    return [len(loader) for loader in loaders], [
        len(list(loader)) for loader in loaders
    ], repr(loaders[0])  # fmt: skip


@pytest.mark.parametrize("drop_last", [False, True])
def test_lengths_are_those_of_the_whole_run(drop_last):
    for announced, found, said in run_on(2, lengths, drop_last):
        assert announced == found == [9 if drop_last else 10] * 4
        assert "batches of 5 an epoch on 2 processes" in said


def by_itself():
    loader = make(crest.Random(), make_model(), size=2 * GLOBAL, shard=False)
    return [loader.handed_out.indices.tolist() for _ in loader], loader.batch_size


def test_a_process_that_shares_nothing_is_by_itself():
    one, other = run_on(2, by_itself)
    assert one == other
    assert one[1] == GLOBAL


def until_one_ends():
    loader = make(crest.GreedyMiniBatch(), make_model())
    for epoch in range(3):
        for _ in loader:
            if epoch == 1 and rank_now() == 1:
                raise ValueError("no more memory")


def test_a_process_that_ends_ends_the_others_with_a_sentence():
    one, other = run_on(2, in_silence, until_one_ends, timeout=10)
    assert other == "ValueError: no more memory"
    assert "process 0 of 2 waited for the others" in one
    assert "The first error of the other processes says why" in one


def bytes_of_a_part():
    """What travels where a row of many is told."""
    from torch.distributed import distributed_c10d

    from crest.ranks import Ranks

    all_gather, sizes = distributed_c10d.all_gather, []

    def counted(lists, tensor, *rest, **options):
        sizes.append(tensor.numel() * tensor.element_size())
        return all_gather(lists, tensor, *rest, **options)

    distributed_c10d.all_gather = counted
    found = Ranks().gather("a row", {"of": torch.arange(100_000.0).view(1000, 100)[rank_now()]})
    return max(sizes), found


def test_a_part_of_a_tensor_travels_without_the_rest():
    for size, found in run_on(2, bytes_of_a_part):
        assert size < 2_000
        assert [int(one["of"][0]) for one in found] == [0, 100]


def with_other_seeds():
    list(make(crest.Random(), make_model(), seed=rank_now()))


def at_other_batches():
    loader = make(crest.GreedyMiniBatch(), make_model())
    iterator = iter(loader)
    next(iterator)
    if rank_now():
        loader.preview(10)
    else:
        list(iterator)
        list(loader)


def made_too_early():
    distributed.barrier()  # the other may still connect
    distributed.destroy_process_group()
    loader = make(crest.Random(), make_model())
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    object.__setattr__(loader._ranks, "world", 2)  # as if there had been another number
    next(iter(loader))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (with_other_seeds, "seed must be the same on all processes; process"),
        (at_other_batches, "all processes must take the same batches; process"),
        (made_too_early, "must be made after torch.distributed was initialised"),
    ],
)
def test_processes_that_differ_are_refused(function, message):
    for answer in run_on(2, in_silence, function, timeout=10):
        assert message in str(answer)


def test_too_few_examples_for_all_are_refused():
    answers = run_on(2, make_small)
    assert all("batch_size must be at most 5, as 2 processes train on 10" in one for one in answers)


def make_small():
    make(crest.Random(), make_model(), TensorDataset(*make_data(10)), size=12)


def test_a_resumed_run_continues_bit_for_bit_on_each_process():
    assert run_on(2, stop_inside, False) == [True, True]


def stop_inside(shares_state):
    flat, *_ = train(crest.OnlineSelection(), epochs=5)
    for stop_at in (1, 3, 8, 18):
        if not torch.equal(flat, stop_and_go_on(stop_at, shares_state)):
            return False
    return True


def stop_and_go_on(stop_at, shares_state):
    state, steps = None, 0
    while True:
        model = make_model()
        ddp = nn.parallel.DistributedDataParallel(model)
        loader = make(crest.OnlineSelection(), ddp)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        if state is not None:
            model.load_state_dict(state[0])
            loader.load_state_dict(state[1])
        saved = False
        while steps < 5 * len(loader) and not saved:
            for inputs, targets, weights in loader:
                optimizer.zero_grad()
                crest.weighted_mean(CRITERION(ddp(inputs), targets), weights).backward()
                optimizer.step()
                steps += 1
                if steps == stop_at and state is None:
                    state = copy.deepcopy([model.state_dict(), loader.state_dict()])
                    if shares_state:
                        distributed.broadcast_object_list(state, src=0)
                    saved = True
                    break
        if not saved:
            return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_state_of_the_first_process_does_for_all():
    (one, other) = run_on(2, stop_and_go_on, 9, True)
    assert torch.equal(one, other)


def state_at(stop_at):
    loader = make(crest.Random(), make_model())
    for count, _ in enumerate(loader, start=1):
        if count == stop_at:
            return loader.state_dict()
    return None


def rest_from(state):
    loader = make(crest.Random(), make_model())
    loader.load_state_dict(state)
    return [loader.handed_out.indices.tolist() for _ in loader]


def test_a_run_goes_on_with_another_number_of_processes_and_the_same_batches():
    state = run_on(2, state_at, 1)[0]
    (alone,) = run_on(1, rest_from, state)
    parts = run_on(3, rest_from, state)
    assert len(alone) == 3
    for whole, *of_each in zip(alone, *parts, strict=True):
        assert sorted(itertools.chain(*of_each)) == sorted(whole)


def test_another_batch_of_all_processes_together_is_refused():
    state = run_on(2, state_at, 1)[0]
    loader = make(crest.Random(), make_model(), size=6)
    message = "batch_size must be that of the checkpoint, 12; got 6.*counts those of all processes"
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(state)
