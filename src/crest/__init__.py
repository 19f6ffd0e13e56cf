"""Train a deep network on a tenth of the steps with mini-batch coresets."""

from crest.batches import weighted_mean as weighted_mean
from crest.loader import CoresetLoader as CoresetLoader
from crest.options import Look as Look
from crest.selection import Coreset as Coreset
from crest.selection import facility_location as facility_location
from crest.strategies import AdaCore as AdaCore
from crest.strategies import Craig as Craig
from crest.strategies import Crest as Crest
from crest.strategies import CrestAdvanced as CrestAdvanced
from crest.strategies import Full as Full
from crest.strategies import Glister as Glister
from crest.strategies import GradMatch as GradMatch
from crest.strategies import GreedyMiniBatch as GreedyMiniBatch
from crest.strategies import LossPruning as LossPruning
from crest.strategies import Random as Random
from crest.strategies import RememberedGradients as RememberedGradients
from crest.strategies import SelectiveBackprop as SelectiveBackprop

__version__ = "0.1.0"
