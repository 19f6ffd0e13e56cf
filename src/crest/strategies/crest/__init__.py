"""CREST, Algorithm 1 of the paper (Yang, Kang, Mirzasoleiman, ICML 2023)."""

from crest.strategies.crest.settings import Crest as Crest
from crest.strategies.crest.settings import CrestAdvanced as CrestAdvanced
