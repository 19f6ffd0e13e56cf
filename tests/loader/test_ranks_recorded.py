"""What several processes know of the examples is what one process would know."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import crest
from loader.test_ranks import CRITERION, GLOBAL, N, make, make_model, rank_now, same, world_size
from processes import run_on

EXACT = ["index", "times_trained", "times_selected", "num_observations", "observed", "forgotten"]
CLOSE = ["last_loss", "smoothed_loss", "aum", "label_score"]


class Kept(list):
    def log(self, metrics, step):
        self.append((step, metrics["crest/cost"]))

    def close(self):
        pass


def train(strategy, epochs, *, stop_at=None, **options):
    """Train, from a state saved after `stop_at` batches on if that is given."""
    state, kept = None, Kept()
    while True:
        model = make_model()
        ddp = nn.parallel.DistributedDataParallel(model) if world_size() > 1 else model
        loader = make(strategy, ddp, record=True, tracker=kept, **options)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        if state is not None:
            model.load_state_dict(state[0])
            loader.load_state_dict(state[1])
        while loader._total < epochs * len(loader):
            for inputs, targets, weights in loader:
                optimizer.zero_grad()
                crest.weighted_mean(CRITERION(ddp(inputs), targets), weights).backward()
                optimizer.step()
                if state is None and loader._total == stop_at:
                    state = copy.deepcopy([model.state_dict(), loader.state_dict()])
                    break
            else:
                continue
            break
        else:
            columns = {name: np.asarray(value) for name, value in dict(loader.examples()).items()}
            return columns, loader._ledger.record.state_dict(), list(kept)


@pytest.mark.parametrize(
    "strategy",
    [crest.Random(), crest.Full(), crest.OnlineSelection()],
    ids=lambda one: type(one).__name__,
)
def test_all_processes_know_what_one_would(strategy):
    epochs = 4
    ((alone, record, told),) = run_on(1, train_on_all, strategy, epochs)
    answers = run_on(2, train_on_all, strategy, epochs)
    assert alone["times_trained"].sum() == alone["num_observations"].sum() == epochs * N
    for columns, its_record, _ in answers:
        for name in EXACT:
            assert (columns[name] == alone[name]).all(), name
        for name in CLOSE:
            assert columns[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name
        assert torch.equal(its_record["recent_steps"], record["recent_steps"])
    same(answers[0][1], answers[1][1])
    assert answers[0][2] == told
    assert not answers[1][2]  # one of them tells the tracker


def train_on_all(strategy, epochs):
    return train(strategy, epochs, budget=1.0)


def resumed():
    _, whole, _ = train(crest.OnlineSelection(), 4)
    for stop_at in (3, 6, 10):
        _, record, _ = train(crest.OnlineSelection(), 4, stop_at=stop_at)
        same(record | {"curve": []}, whole | {"curve": []})  # its points end where a state is saved


def test_a_record_goes_on_from_a_state_on_each_process():
    assert run_on(2, resumed) == [None, None]


def state_within():
    model = make_model()
    loader = make(crest.Random(), model, record=True)
    for inputs, targets, weights in itertools.islice(loader, 3):
        crest.weighted_mean(CRITERION(model(inputs), targets), weights).backward()
    return loader.state_dict()


def test_what_the_first_process_saw_is_known_to_one_that_goes_on_alone():
    state = run_on(2, state_within)[0]
    loader = make(crest.Random(), make_model(), record=True)
    loader.load_state_dict(state)
    table = loader.examples()
    assert table["times_trained"].sum() == 3 * GLOBAL
    assert table["num_observations"].sum() == 3 * GLOBAL / 2


def with_other_records():
    list(make(crest.Random(), make_model(), record=rank_now() == 1))


def test_all_record_or_none():
    for answer in run_on(2, with_other_records, timeout=10):
        assert "record must be the same on all processes" in answer


def looked_over(num_steps):
    checkup = crest.doctor(make(crest.OnlineSelection(), make_model()), num_steps=num_steps)
    counted = ("steps_per_epoch", "passes_per_epoch", "passes", "first_selected_step")
    return [checkup.numbers[name] for name in counted], len(checkup.problems)


def test_the_doctor_counts_the_whole_run():
    (alone,) = run_on(1, looked_over, 50)
    assert run_on(2, looked_over, 50) == [alone, alone]
    assert alone[0][:3] == [4, 0.5, 50 * GLOBAL / N]
