"""Experiments: data sets, networks, runs, and the paper's tables; for cli and report alone."""

from crest.lab.data.datasets import DATASETS as DATASETS
from crest.lab.data.datasets import load_dataset as load_dataset
from crest.lab.data.image_data import ImageData as ImageData
from crest.lab.data.views import ImageViews as ImageViews
from crest.lab.networks.vision import NETWORKS as NETWORKS
from crest.lab.networks.vision import build_network as build_network
from crest.lab.run.comparison import Progress as Progress
from crest.lab.run.comparison import compare as compare
from crest.lab.run.diagnosis import DIAGNOSTICS as DIAGNOSTICS
from crest.lab.run.planning import DEFAULTS as DEFAULTS
from crest.lab.run.planning import plan_runs as plan_runs
from crest.lab.run.results import Results as Results
from crest.lab.run.settings import RunSettings as RunSettings
from crest.lab.run.training import train as train
