"""Methods to pick mini-batches, behind one protocol."""

from crest.strategies.crest import Crest as Crest
from crest.strategies.full import Full as Full
from crest.strategies.greedy import GreedyMiniBatch as GreedyMiniBatch
from crest.strategies.protocol import Strategy as Strategy
from crest.strategies.random import Random as Random
