"""Numbers and statements that the paper printed, with their places, in percent as there."""

from __future__ import annotations

__all__ = ["PUBLISHED", "SETUPS", "STATED"]

# Relative errors by item, task and label: mean, and standard deviation where there is one.
_TABLE_1: dict[str, dict[str, tuple[float, float]]] = {
    "cifar10": {
        "SGD-dagger": (21.3, 8.0),
        "Random": (7.2, 1.4),
        "CRAIG": (13.0, 5.1),
        "GradMatch": (6.0, 0.1),
        "GLISTER": (7.0, 0.1),
        "CREST": (5.5, 0.2),
    },
    "cifar100": {
        "SGD-dagger": (36.5, 2.9),
        "Random": (11.7, 0.4),
        "CRAIG": (17.2, 4.5),
        "GradMatch": (12.7, 0.9),
        "GLISTER": (27.6, 4.0),
        "CREST": (9.4, 0.3),
    },
    "tinyimagenet": {
        "SGD-dagger": (32.8, 2.1),
        "Random": (16.0, 0.5),
        "CRAIG": (28.5, 0.6),
        "GradMatch": (27.7, 0.2),
        "GLISTER": (32.8, 2.1),
        "CREST": (15.4, 0.6),
    },
    "snli": {"SGD-dagger": (1.2, 0.3), "Random": (1.2, 0.3), "CREST": (0.8, 0.2)},
}
_TABLE_3 = {
    "CREST-first": (7.45,),
    "CREST w/o smooth": (7.44,),
    "CREST w/o excluding": (4.61,),
    "CREST": (4.33,),
}
_TABLE_5 = {
    "cifar10": {"CREST": (2.32,), "Random": (2.87,), "SGD-dagger": (16.47,)},
    "cifar100": {"CREST": (3.37,), "Random": (3.66,), "SGD-dagger": (32.68,)},
    "tinyimagenet": {"CREST": (3.05,), "Random": (3.51,), "SGD-dagger": (47.43,)},
}
_FIG_8 = {"CREST": (5.2,), "Random": (7.1,), "Random, m x 4": (4.0,)}

PUBLISHED: dict[str, dict[str, dict[str, dict[str, tuple[float, ...]]]]] = {
    "table1": {"relative error": {task: dict(row) for task, row in _TABLE_1.items()}},
    "table3": {
        "relative error": {"cifar10": dict(_TABLE_3)},
        "updates": {
            "cifar10": {
                "CREST-first": (343,),
                "CREST w/o smooth": (369,),
                "CREST w/o excluding": (346,),
                "CREST": (185,),
            }
        },
    },
    "table5": {"relative error": {task: dict(row) for task, row in _TABLE_5.items()}},
    # Section 5.2: "reduce the number of updates to 2% and 3% [...] preserving 98% and 99%".
    "fig3": {
        "accuracy / greedy": {
            "cifar10": {"CREST": (99,)},
            "cifar100": {"CREST": (98,)},
            "tinyimagenet": {"CREST": (95,)},
            "snli": {"CREST": (99,)},
        },
        "updates / greedy": {
            "cifar10": {"CREST": (3,)},
            "cifar100": {"CREST": (2,)},
            "tinyimagenet": {"CREST": (19,)},
            "snli": {"CREST": (26,)},
        },
    },
    "fig8": {"relative error": {"cifar10": dict(_FIG_8)}},
}
# Figure 2 is 1 minus the errors of Table 1; Figure 4 shows the runs of Table 3.
PUBLISHED["fig2"] = {
    "accuracy / full": {
        task: {label: (100 - row[label][0],) for label in ("Random", "CREST")}
        for task, row in _TABLE_1.items()
    }
}
PUBLISHED["fig4"] = {"updates": PUBLISHED["table3"]["updates"]}

# Table 4: classes, train examples, parameters, accuracy of full training with its deviation.
SETUPS: dict[str, tuple[str, str, str, str]] = {
    "cifar10": ("10", "50K", "0.27M", "92.1 ± 0.1"),
    "cifar100": ("100", "50K", "11M", "75.6 ± 0.3"),
    "tinyimagenet": ("200", "100K", "23M", "66.9 ± 0.1"),
    "snli": ("3", "570K", "123M", "92.9 ± 0.2"),
}

# What the paper says in words or shows in a figure without numbers.
STATED: dict[str, str] = {
    "table1": "Table 1. The paper's GLISTER and SGD-dagger on TinyImageNet are the same number.",
    "table2": "Table 2, one A6000. Whether 0.089 s is the whole pick of CRAIG or the share of one "
    "mini-batch is not told; it is set beside the latter, as the caption says batch size 128.",
    "table3": "Table 3. Its CREST has 4.33 %, that of Table 1 5.5 %; the paper does not say why.",
    "table4": "Table 4.",
    "table5": "Table 5.",
    "table6": "Table 6 and Section 5.",
    "fig1": "Figure 1: CRAIG may do very poorly, its error grows and its mini-batches have a large "
    "bias and variance; CREST is nearly unbiased, its variance below that of random batches.",
    "fig2": "Figure 2: 1.7 to 2.5 times as fast as full training (Section 1), so 40 to 59 % of its "
    "run time.",
    "fig3": "Figure 3 and Section 5.2.",
    "fig4": "Figure 4: updates become rare over training; CREST has the fewest.",
    "fig5": "Figure 5: scores of what CREST picks rise, more so with exclusion; those of random "
    "subsets are constantly lower.",
    "fig6": "Figure 6: the union has a smaller error than single mini-batches; the normalized bias "
    "of CREST stays below 1, that of CRAIG can be large.",
    "fig7": "Figure 7: accuracy on dropped examples is 92 % at first and above 99 % at the end; "
    "the distribution over picks is long-tailed.",
    "fig8": "Figure 8, whose table says m = 512 and whose text says 500.",
    "fig9": "Figure 9: the variance of CREST is close to that of V_r, that of random batches "
    "considerably larger.",
}
