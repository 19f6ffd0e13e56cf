"""Tables and figures of the paper: their runs, and the numbers that it printed."""

from crest.experiments.paper.items import ITEMS as ITEMS
from crest.experiments.paper.items import Item as Item
from crest.experiments.paper.items import Variant as Variant
from crest.experiments.paper.reproduction import Outcome as Outcome
from crest.experiments.paper.reproduction import reproduce as reproduce
from crest.experiments.paper.tasks import SCALES as SCALES
from crest.experiments.paper.tasks import PaperTask as PaperTask
