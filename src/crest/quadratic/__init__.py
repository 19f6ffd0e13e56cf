"""A quadratic model of the loss: Hessian diagonal, smoothing, prediction."""

from crest.quadratic.hutchinson import flat_size as flat_size
from crest.quadratic.hutchinson import flatten as flatten
from crest.quadratic.hutchinson import (
    gradient_and_hessian_diagonal as gradient_and_hessian_diagonal,
)
from crest.quadratic.hutchinson import rademacher_probes as rademacher_probes
from crest.quadratic.model import QuadraticModel as QuadraticModel
from crest.quadratic.model import relative_error as relative_error
from crest.quadratic.smoothing import SmoothedMoments as SmoothedMoments
