"""The paper's numbers are typed right, and the plan follows its settings."""

import pytest

from crest.lab.paper import ITEMS, SCALES
from crest.lab.paper.published import PUBLISHED, SETUPS, STATED


@pytest.mark.parametrize(
    ("item", "name", "task", "label", "value"),
    [
        ("table1", "relative error", "cifar10", "SGD-dagger", (21.3, 8.0)),
        ("table1", "relative error", "cifar10", "CREST", (5.5, 0.2)),
        ("table1", "relative error", "cifar100", "GLISTER", (27.6, 4.0)),
        ("table1", "relative error", "tinyimagenet", "GradMatch", (27.7, 0.2)),
        ("table1", "relative error", "snli", "CREST", (0.8, 0.2)),
        ("table3", "relative error", "cifar10", "CREST-first", (7.45,)),
        ("table3", "updates", "cifar10", "CREST w/o smooth", (369,)),
        ("table5", "relative error", "tinyimagenet", "SGD-dagger", (47.43,)),
        ("fig2", "accuracy / full", "cifar10", "CREST", (94.5,)),
        ("fig3", "updates / greedy", "snli", "CREST", (26,)),
        ("fig4", "updates", "cifar10", "CREST", (185,)),
        ("fig8", "relative error", "cifar10", "Random, m x 4", (4.0,)),
    ],
)
def test_numbers_are_those_of_the_paper(item, name, task, label, value):
    assert PUBLISHED[item][name][task][label] == pytest.approx(value)


def test_every_published_number_belongs_to_a_run():
    for item, numbers in PUBLISHED.items():
        labels = {variant.label for variant in ITEMS[item].variants}
        for tasks in numbers.values():
            assert set(tasks) <= set(ITEMS[item].tasks)
            assert {label for row in tasks.values() for label in row} <= labels
    assert STATED.keys() == ITEMS.keys()
    assert SETUPS.keys() == SCALES["paper"].keys()


def test_there_is_every_table_and_figure_at_every_scale():
    assert set(ITEMS) == {*(f"table{k}" for k in range(1, 7)), *(f"fig{k}" for k in range(1, 10))}
    assert {tuple(tasks) for tasks in SCALES.values()} == {tuple(SETUPS)}


def run_of(item, label, task, scale="paper", num_train=50_000):
    variant = next(variant for variant in ITEMS[item].variants if variant.label == label)
    return variant.settings(SCALES[scale][task], num_train, seed=0, machine={"threads": 1})


def test_paper_scale_takes_the_published_settings():
    image = run_of("table1", "CREST", "cifar100")
    assert (image.network, image.epochs, image.batch_size) == ("resnet18", 200, 128)
    assert (image.lr, image.momentum, image.budget) == (0.1, 0.9, 0.1)
    strategy = image.make_strategy()
    assert (strategy.error_threshold, strategy.interval_multiplier) == (0.01, 10)
    assert (strategy.subset_size, strategy.coreset_multiplier) == (500, 5)
    assert (strategy.exclusion_interval, strategy.loss_threshold) == (20, 0.1)
    assert (strategy.curvature, strategy.features) == ("trainable", "input")
    text = run_of("table1", "CREST", "snli", num_train=550_000)
    assert (text.optimizer, text.lr, text.epochs, text.batch_size) == ("adamw", 1e-5, 8, 32)
    strategy = text.make_strategy()
    assert (strategy.error_threshold, strategy.interval_multiplier) == (0.05, 4)
    assert (strategy.subset_size, strategy.curvature) == (2750, "head")
    assert run_of("table5", "Random", "tinyimagenet").budget == 0.2


def test_larger_batches_take_as_many_steps():
    large, random = (run_of("fig8", label, "cifar10") for label in ("Random, m x 4", "Random"))
    assert (large.batch_size, random.batch_size) == (512, 128)
    assert large.count_steps(50_000 // 512) == pytest.approx(
        random.count_steps(50_000 // 128), rel=0.01
    )


def test_ablations_leave_out_one_part_each():
    crest = run_of("table3", "CREST", "cifar10").make_strategy()
    changes = {"CREST-first": "curvature", "CREST w/o smooth": "betas"}
    for label, name in {**changes, "CREST w/o excluding": "exclusion_interval"}.items():
        strategy = run_of("table3", label, "cifar10").make_strategy()
        assert [k for k, v in vars(strategy).items() if v != vars(crest)[k]] == [name]


def test_small_scale_keeps_batches_and_subsets_of_the_paper():
    paper, small = (run_of("table1", "CREST", "cifar10", scale) for scale in ("paper", "small"))
    assert vars(paper.make_strategy()) == vars(small.make_strategy())
    assert (paper.batch_size, paper.lr) == (small.batch_size, small.lr)
