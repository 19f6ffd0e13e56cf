"""Methods to pick mini-batches, behind one protocol."""

from crest.strategies.adacore import AdaCore as AdaCore
from crest.strategies.craig import Craig as Craig
from crest.strategies.crest import Crest as Crest
from crest.strategies.crest import CrestAdvanced as CrestAdvanced
from crest.strategies.full import Full as Full
from crest.strategies.glister import Glister as Glister
from crest.strategies.grad_match import GradMatch as GradMatch
from crest.strategies.greedy import GreedyMiniBatch as GreedyMiniBatch
from crest.strategies.loss_pruning import LossPruning as LossPruning
from crest.strategies.protocol import Strategy as Strategy
from crest.strategies.random import Random as Random
from crest.strategies.registry import Paper as Paper
from crest.strategies.registry import StrategyEntry as StrategyEntry
from crest.strategies.registry import register_strategy as register_strategy
from crest.strategies.registry import registered_strategies as registered_strategies
from crest.strategies.remembered import RememberedGradients as RememberedGradients
from crest.strategies.selective_backprop import SelectiveBackprop as SelectiveBackprop
