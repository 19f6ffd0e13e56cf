"""The distance of a check is how far the parameters really went, its age how long it took."""

import pytest
import torch

import crest
from crest.diagnostics import loss_model_errors
from toys import make_loader, make_model, train


def test_checks_tell_the_distance_from_the_anchor_and_the_error_there():
    model = make_model()
    strategy = crest.Crest.paper(
        error_threshold=0.02, interval_multiplier=3.0, max_coreset_uses=None
    )
    loader = make_loader(strategy, model=model, budget=1.0)
    flat = [torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()]
    train(
        loader,
        model,
        on_step=lambda *_: flat.append(
            torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        ),
    )
    checks = loss_model_errors(loader.history)
    assert max(check["age"] for check in checks) > 3  # coresets were kept
    assert len({check["step"] - check["age"] for check in checks}) > 1  # and picked anew
    anchors = {region["step"] for region in loader.history.records if region["updated"]}
    for check in checks:
        anchor = check["step"] - check["age"]
        assert anchor in anchors
        distance = float((flat[check["step"]] - flat[anchor]).norm())
        assert check["distance"] == pytest.approx(distance, rel=1e-5)
        error = abs(check["predicted_loss"] - check["check_loss"]) / check["check_loss"]
        assert check["relative_error"] == pytest.approx(error)


def test_a_check_whose_anchor_was_cut_off_has_no_age():
    model = make_model()
    strategy = crest.Crest.paper(error_threshold=1e9, max_coreset_uses=None)
    loader = make_loader(strategy, model=model, budget=1.0)
    train(loader, model)
    state = loader.history.state_dict()
    assert loss_model_errors(loader.history)[-1]["age"] > 0
    loader.history.load_state_dict({**state, "records": state["records"][-3:]})
    assert [check["age"] for check in loss_model_errors(loader.history)] == [None] * 3


def test_without_a_loss_model_there_is_nothing_to_tell():
    model = make_model()
    loader = make_loader(crest.Random(), model=model)
    train(loader, model)
    assert loss_model_errors(loader.history) == []
