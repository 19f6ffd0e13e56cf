"""What a run looks like from within: gradient errors, forgetting, what is picked and left out."""

from crest.diagnostics.excluded import excluded_accuracy as excluded_accuracy
from crest.diagnostics.forgetting import Forgetting as Forgetting
from crest.diagnostics.gradient_error import GradientError as GradientError
from crest.diagnostics.gradient_error import measure_gradient_error as measure_gradient_error
from crest.diagnostics.loss_model import loss_model_errors as loss_model_errors
from crest.diagnostics.selections import Selections as Selections
