"""Data sets, networks and runs of the paper's comparisons."""

from crest.experiments.comparison import Progress as Progress
from crest.experiments.comparison import compare as compare
from crest.experiments.datasets import DATASETS as DATASETS
from crest.experiments.datasets import load_dataset as load_dataset
from crest.experiments.diagnosis import DIAGNOSTICS as DIAGNOSTICS
from crest.experiments.image_data import ImageData as ImageData
from crest.experiments.networks import NETWORKS as NETWORKS
from crest.experiments.networks import build_network as build_network
from crest.experiments.planning import DEFAULTS as DEFAULTS
from crest.experiments.planning import plan_runs as plan_runs
from crest.experiments.results import Results as Results
from crest.experiments.settings import STRATEGIES as STRATEGIES
from crest.experiments.settings import RunSettings as RunSettings
from crest.experiments.training import train as train
from crest.experiments.views import ImageViews as ImageViews
