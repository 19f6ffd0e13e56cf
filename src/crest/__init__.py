"""Train a deep network on a tenth of the steps with mini-batch coresets."""

from crest.loader import CoresetLoader as CoresetLoader
from crest.loader import weighted_mean as weighted_mean
from crest.selection import Coreset as Coreset
from crest.selection import facility_location as facility_location
from crest.strategies import Crest as Crest
from crest.strategies import Full as Full
from crest.strategies import GreedyMiniBatch as GreedyMiniBatch
from crest.strategies import Random as Random

__version__ = "0.1.0"
