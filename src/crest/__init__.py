"""Train a deep network on what its own training shows to be worth it: selection and coresets."""

from crest.batches import weighted_mean
from crest.checkup import doctor
from crest.findings import Checkup
from crest.loader import CoresetLoader
from crest.options import Look
from crest.selection import Coreset, facility_location
from crest.strategies import (
    AdaCore,
    Craig,
    Crest,
    CrestAdvanced,
    Full,
    Glister,
    GradMatch,
    GreedyMiniBatch,
    LossPruning,
    OnlineSelection,
    Random,
    RememberedGradients,
    SelectiveBackprop,
    register_strategy,
    registered_strategies,
)
from crest.trackers import JsonLines, MLflow, TensorBoard, Tracker, WandB

__all__ = [
    "AdaCore",
    "Checkup",
    "Coreset",
    "CoresetLoader",
    "Craig",
    "Crest",
    "CrestAdvanced",
    "Full",
    "Glister",
    "GradMatch",
    "GreedyMiniBatch",
    "JsonLines",
    "Look",
    "LossPruning",
    "MLflow",
    "OnlineSelection",
    "Random",
    "RememberedGradients",
    "SelectiveBackprop",
    "TensorBoard",
    "Tracker",
    "WandB",
    "doctor",
    "facility_location",
    "register_strategy",
    "registered_strategies",
    "weighted_mean",
]

__version__ = "0.1.0"


def __dir__() -> list[str]:
    """Show the public names, and not the modules that happen to be imported."""
    return [*__all__, "__version__"]
