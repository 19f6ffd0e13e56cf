"""Pick the examples that stand for the rest of a random subset, Eq. (5) and (11)."""

from crest.selection.distances import last_layer_distances, pairwise_distances
from crest.selection.facility_location import Coreset, facility_location

__all__ = ["Coreset", "facility_location", "last_layer_distances", "pairwise_distances"]
