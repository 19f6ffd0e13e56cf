"""Plant known defects of other implementations, and see a claim of ours fail for each.

A claim is a test of this suite; a defect is planted by patching one place of the library.
"""

import functools
import itertools
from contextlib import contextmanager

import pytest
import torch
from torch.utils.data import TensorDataset

import crest
import test_pool
import test_schedule
from crest.data_view import DataView
from crest.looking.observer import Observer
from crest.pool import Pool
from crest.quadratic import SmoothedMoments, flatten
from crest.schedule import AdaptiveSchedule
from crest.strategies import coresets as selecting
from crest.strategies.crest.planner import CrestPlanner
from crest.strategies.protocol import MiniBatch
from loader import test_loader
from looking import test_observer
from strategies import test_crest
from toys import make_tensors

DEFECTS = {}


def defect(claim, *arguments):
    """Pair a way to plant a defect with the claim that must fail."""

    def add(plant):
        DEFECTS[plant.__name__] = (plant, functools.partial(claim, *arguments))
        return plant

    return add


@defect(test_loader.test_full_equals_a_plain_loop_bit_for_bit, TensorDataset(*make_tensors()), True)
def the_update_uses_twice_the_gradient(monkeypatch):
    monkeypatch.setattr(crest, "weighted_mean", lambda losses, weights: 2 * losses.mean())


@defect(test_crest.test_the_displacement_is_the_real_one_since_the_anchor, "momentum and decay")
def delta_is_a_sum_of_lr_times_gradient(monkeypatch):
    def summed(self, examples):
        parameters = examples.parameters("trainable")
        if parameters[0].grad is None:
            self.sum = torch.zeros_like(flatten(parameters))
        else:
            self.sum = self.sum - 0.1 * flatten([p.grad for p in parameters])
        return self.sum

    monkeypatch.setattr(CrestPlanner, "_parameters", summed)


@defect(test_crest.test_the_displacement_is_the_real_one_since_the_anchor, "sgd")
def delta_starts_at_the_last_check(monkeypatch):
    check = CrestPlanner._check

    def moving(self, examples, model):
        record = check(self, examples, model)
        self._anchor = self._parameters(examples)
        return record

    monkeypatch.setattr(CrestPlanner, "_check", moving)


@defect(test_crest.test_a_check_passes_only_its_subset_forward, "fresh")
def a_check_passes_the_whole_data_set_forward(monkeypatch):
    fresh_losses = DataView.fresh_losses

    def wasteful(self, indices):
        fresh_losses(self, torch.arange(len(self.labels)))
        return fresh_losses(self, indices)

    monkeypatch.setattr(DataView, "fresh_losses", wasteful)


@defect(test_crest.test_rho_is_zero_where_nothing_has_moved, "candidates")
def the_anchor_is_measured_in_train_mode(monkeypatch):
    last_layer_gradients = Observer.last_layer_gradients

    @contextmanager
    def in_train_mode(self):
        yield

    def noisy(self, batch):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Observer, "_undisturbed", in_train_mode)
            return last_layer_gradients(self, batch)

    monkeypatch.setattr(Observer, "last_layer_gradients", noisy)


@defect(test_observer.test_a_pass_leaves_no_trace, "last_layer_gradients", None, True)
def a_pass_moves_the_statistics_of_batch_norm(monkeypatch):
    @contextmanager
    def in_train_mode(self):
        yield

    monkeypatch.setattr(Observer, "_undisturbed", in_train_mode)


@defect(test_crest.test_rho_is_zero_where_nothing_has_moved, "candidates")
def the_anchor_loss_is_that_of_weighted_coresets(monkeypatch):
    fit = CrestPlanner._fit_quadratic

    def weighted(self, examples, loss):
        with examples.weighted_loss(self._coresets[0], 0, self._scope) as coreset_loss:
            return fit(self, examples, float(coreset_loss.detach()))

    monkeypatch.setattr(CrestPlanner, "_fit_quadratic", weighted)


@defect(test_loader.test_weights_are_positive_with_mean_one, crest.Crest.paper())
def picks_per_class_are_rounded_up(monkeypatch):
    pick = selecting.facility_location

    def rounded_up(gradients=None, batch_size=1, **options):
        return pick(gradients, -(-batch_size // 5) * 5, **options)  # 20 for 16

    monkeypatch.setattr(selecting, "facility_location", rounded_up)


@defect(test_crest.test_cluster_sizes_belong_to_a_coreset_and_not_to_an_example)
def weights_are_stored_by_example(monkeypatch):
    from crest.strategies.crest import planner as algorithm

    def overwriting(*arguments, **keywords):
        selection = selecting.select_coresets(*arguments, **keywords)
        batches = selection.coresets
        by_example = {
            index: weight
            for batch in batches
            for index, weight in zip(batch.indices.tolist(), batch.weights, strict=True)
        }
        coresets = [
            MiniBatch(b.indices, torch.stack([by_example[i] for i in b.indices.tolist()]))
            for b in batches
        ]
        return selection._replace(coresets=coresets)

    monkeypatch.setattr(algorithm, "select_coresets", overwriting)


@defect(test_crest.test_coresets_are_kept_whole_and_none_comes_twice_before_all_were_used)
def coresets_are_shuffled_into_one_union(monkeypatch):
    def from_union(self):
        indices = torch.cat([batch.indices for batch in self._coresets])
        weights = torch.cat([batch.weights for batch in self._coresets])
        rows = torch.randperm(len(indices), generator=self._task.generator)
        rows = rows[: self._task.batch_size]
        return MiniBatch(indices[rows], weights[rows])

    monkeypatch.setattr(CrestPlanner, "_draw_coreset", from_union)


@defect(test_crest.test_the_averages_advance_once_a_round)
def the_averages_advance_once_a_batch(monkeypatch):
    update = SmoothedMoments.update

    def for_each_batch(self, gradient, hessian_diagonal):
        for _ in range(5):
            result = update(self, gradient, hessian_diagonal)
        return result

    monkeypatch.setattr(SmoothedMoments, "update", for_each_batch)


@defect(test_schedule.test_intervals_grow_with_the_inverse_of_the_curvature, 10.0, 8.0, 10, 50)
def the_number_of_coresets_is_capped_by_the_epoch(monkeypatch):
    adapt = AdaptiveSchedule.adapt

    def capped(self, curvature_norm):
        adapt(self, curvature_norm)
        self.num_coresets = min(self.num_coresets, 25)

    monkeypatch.setattr(AdaptiveSchedule, "adapt", capped)


@defect(test_crest.test_learned_examples_leave_for_good_at_multiples_of_the_interval)
def excluded_examples_return(monkeypatch):
    exclude = Pool.exclude
    windows = itertools.count()

    def forgetful(self, indices, losses, labels):
        if not len(indices) or next(windows) == 0:
            return exclude(self, indices, losses, labels)
        self.active.fill_(True)
        return indices[:0]

    monkeypatch.setattr(Pool, "exclude", forgetful)


@defect(test_crest.test_learned_examples_leave_for_good_at_multiples_of_the_interval)
def the_floor_keeps_most_of_the_pool(monkeypatch):
    def floored(self, indices, losses, labels):
        return indices[:0]

    monkeypatch.setattr(Pool, "exclude", floored)


@defect(test_pool.test_every_example_is_as_likely_as_any_other)
def random_subsets_are_balanced_by_class(monkeypatch):
    draw = Pool.draw

    def balanced(self, count, size, generator, *, labels=None):
        rare = torch.arange(len(self.active)) < 4  # a tenth of the pool is one of two classes
        halves = []
        for members in (rare, ~rare):
            pool = Pool(len(self.active))
            pool.active &= members
            halves.append(draw(pool, count, min(size // 2, pool.num_active), generator))
        return torch.cat(halves, dim=1)

    monkeypatch.setattr(Pool, "draw", balanced)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_claim_fails_where_the_defect_is_planted(name, monkeypatch):
    plant, claim = DEFECTS[name]
    claim()  # holds without it
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        claim()
