"""What is shown: the paper's tables and figures, their runs, and the numbers that it printed."""

from crest.lab.paper.items import ITEMS as ITEMS
from crest.lab.paper.items import Item as Item
from crest.lab.paper.items import Variant as Variant
from crest.lab.paper.reproduction import Outcome as Outcome
from crest.lab.paper.reproduction import reproduce as reproduce
from crest.lab.paper.tasks import SCALES as SCALES
from crest.lab.paper.tasks import PaperTask as PaperTask
