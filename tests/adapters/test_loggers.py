"""What a selection tells the loggers that a framework has already."""

import pytest

from adapters.test_resumed import fit, hf


def test_lightning_s_loggers_get_what_a_tracker_gets(tmp_path):
    pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    told = []
    logger.log_metrics = lambda metrics, step=None: told.append((step, dict(metrics)))
    trainer, _ = fit(tmp_path, logger=logger)
    regions = [(step, metrics) for step, metrics in told if "crest/cost" in metrics]
    steps = [step for step, _ in regions]
    assert steps == sorted(set(steps)), "each region once, at its first step"
    assert steps[0] == 0
    assert steps[-1] < trainer.global_step
    assert any(metrics["crest/selected"] == 1.0 for _, metrics in regions)


def test_a_trainer_logs_numbers_of_the_last_region_beside_its_loss(tmp_path):
    pytest.importorskip("transformers")
    logged = hf(tmp_path, logging_steps=4).state.log_history
    with_loss = [entry for entry in logged if "loss" in entry]
    assert len(with_loss) == 6
    assert all("crest/cost" in entry for entry in with_loss)
    assert [entry["crest/cost"] for entry in with_loss][-1] > 0
    (end,) = [entry for entry in logged if "train_runtime" in entry]
    assert "crest/cost" not in end
