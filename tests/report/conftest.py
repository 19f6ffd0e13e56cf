"""Records as a comparison would give them."""

import pytest


@pytest.fixture
def make_record():
    def make(strategy="random", seed=0, accuracy=0.5, **changes):
        steps = changes.get("steps", 10)
        record = {
            "data": "digits", "network": "mlp", "strategy": strategy, "seed": seed,
            "equal_time": False, "settings": {}, "steps": steps, "accuracy": accuracy,
            "accuracy_gap": None, "seconds": 2.0, "cost": float(steps), "overhead": 0.0,
            "updates": 0,
            "history": {"records": [{"step": 0, "length": steps, "selected": strategy == "crest"}]},
            "curve": [
                {"step": steps // 2, "seconds": 1.0, "accuracy": accuracy / 2},
                {"step": steps, "seconds": 2.0, "accuracy": accuracy},
            ],
        }  # fmt: skip
        return {**record, **changes}

    return make
