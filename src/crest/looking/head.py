"""The last layer of a model: which it is, and what of it is trained."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import NamedTuple, cast

from torch import Tensor, nn

from crest.looking.traces import every_module

__all__ = [
    "CALL_THE_MODULE",
    "LastLayer",
    "Run",
    "Structure",
    "declared_head",
    "named_head",
    "trains_bias",
    "unwrapped",
]

CALL_THE_MODULE = (
    "A layer that is applied as functional.linear(h, layer.weight) is not seen: call the module."
)


class Run(NamedTuple):
    """One module that ran in a pass.

    Attributes:
        module: The module.
        receives: Whether gradients reach its output, where the pass had a graph.
        returned: The type of what it returned; Tensor for its kinds, too.
    """

    module: nn.Module
    receives: bool
    returned: type


# Passes a batch through the model, as training does or in eval mode, and tells which of some
# modules ran, in order.
Pass = Callable[[Iterable[nn.Module], bool], list[Run]]


class Structure:
    """The modules and parameters of a model, and which of these are trained, at some time.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parts, self._trained = _structure(model)

    def is_as_before(self) -> bool:
        """Whether the model still has these, in the same order."""
        parts, trained = _structure(self._model)
        return (
            trained == self._trained
            and len(parts) == len(self._parts)
            and all(map(operator.is_, parts, self._parts))
        )


def _structure(model: nn.Module) -> tuple[list[object], list[bool]]:
    modules = every_module(model)
    parameters = [parameter for module in modules for parameter in module._parameters.values()]
    return [*modules, *parameters], [p is not None and p.requires_grad for p in parameters]


class LastLayer:
    """Keeps the last layer of a model in sight while the model changes.

    Attributes:
        version: How often it was found anew.
        searched: The module that it was found in as the last linear layer; None if it was named,
            or declared by the model.

    Args:
        model: The model.
        head: The layer or its name, as the user gave it. One that consists of several stands for
            the last linear one that runs within. None: what the model declares, else the last
            linear layer that is trained.

    Raises:
        ValueError: If there is none of that name.
    """

    def __init__(self, model: nn.Module, head: nn.Module | str | None) -> None:
        self.version = 0
        self.searched: nn.Module | None = None
        self._model = model
        self._given = None if isinstance(head, str) else head
        self._name = head if isinstance(head, str) else _name_of(model, head)
        self._found: nn.Module | None = None
        self._structure = Structure(model)
        self._asks_model = True
        self._named_now()

    @property
    def needs_pass(self) -> bool:
        """Whether it takes a pass to find it."""
        if self._found is not None and self._structure.is_as_before():
            return False
        named = self._named_now()
        return named is None or bool(_linear_within(named))

    def find(self, pass_: Pass) -> nn.Module:
        """Find the layer, anew if the model has changed since.

        Args:
            pass_: Tells which of some modules run.

        Returns:
            The layer.

        Raises:
            ValueError: If no linear layer runs.
        """
        if self._found is not None and self._structure.is_as_before():
            return self._found
        self._structure = Structure(self._model)
        head = self._named_now()
        if head is None and self._asks_model:
            head = declared_head(self._model)
        self.searched = None
        if head is None:
            self.searched = self._model
            head = _last_trained(self._model, _linear_layers(self._model), pass_)
        elif _linear_within(head):
            self.searched = head
            head = _last_trained(head, _linear_within(head), pass_, self._name) or head
        if head is None:
            raise ValueError(
                "the model must have a linear layer that runs, or name its last layer with head=; "
                f"got {type(self._model).__name__} without one. {CALL_THE_MODULE}"
            )
        self._found = head
        self.version += 1
        return head

    def look_further(self) -> bool:
        """Forget a layer that did not run.

        Returns:
            Whether another one may be found.
        """
        self._found = None
        if self.searched is None and self._named_now() is None:
            self._asks_model = False
            return True
        return self.searched is not None

    def _named_now(self) -> nn.Module | None:
        if self._given is not None:
            gone = self._name is not None and _name_of(self._model, self._given) is None
            if not gone:
                return self._given
        return None if self._name is None else named_head(self._model, self._name)


def named_head(model: nn.Module, name: str) -> nn.Module:
    """Look up the last layer by its name.

    Args:
        model: The model.
        name: As in `model.named_modules()`.

    Returns:
        The module.

    Raises:
        ValueError: If there is none of that name; lists the linear layers.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if name not in modules:
        linear = [known for known, module in modules.items() if isinstance(module, nn.Linear)]
        raise ValueError(
            f"head must name a module of the model; got {name!r}. "
            f"Its linear layers are {', '.join(linear) or 'none'}."
        )
    return modules[name]


def declared_head(model: nn.Module) -> nn.Module | None:
    """Ask a model of Hugging Face or timm for its last layer.

    Args:
        model: The model.

    Returns:
        What `get_output_embeddings()` or `get_classifier()` return, if that is linear.
    """
    for name in ("get_output_embeddings", "get_classifier"):
        method = getattr(model, name, None)
        try:
            head = method() if callable(method) else None
        except NotImplementedError:
            head = None
        if isinstance(head, nn.Linear):
            return head
    return None


def unwrapped(model: nn.Module) -> nn.Module:
    """Take a model out of what compiles it or spreads it over devices.

    Args:
        model: The model as it is trained.

    Returns:
        The model that was wrapped, however often.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast("nn.Module", model._orig_mod)
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def trains_bias(head: nn.Module) -> bool:
    """Tell whether gradients by the bias count: not of a frozen bias beside a trained weight."""
    frozen = not any(parameter.requires_grad for parameter in head.parameters())
    biases = [parameter for parameter in head.parameters() if parameter.ndim == 1]
    return any(bias.requires_grad or frozen for bias in biases)


def _last_trained(
    searched: nn.Module,
    candidates: list[nn.Module],
    pass_: Pass,
    head_name: str | None = None,
) -> nn.Module | None:
    """Find the last layer that gradients of training reach, else the last that runs."""
    watched = candidates if head_name is None else [searched, *candidates]
    runs = pass_(watched, False)
    for run in runs:
        if head_name is not None and run.module is searched and run.returned is not Tensor:
            names = [f"{head_name}.{_name_of(searched, module)}" for module in candidates]
            raise ValueError(
                f"the head must return a tensor; {head_name!r} returns a {run.returned.__name__}. "
                f"Name one of its layers with head=: {', '.join(names)}."
            )
    ran = [run.module for run in runs if any(run.module is one for one in candidates)]
    if not ran:
        return None
    if any(run.receives for run in runs if run.module is ran[-1]):
        return ran[-1]
    # A frozen layer runs last, such as a teacher's; or gradients are off in eval mode.
    trained = {id(run.module) for run in pass_(watched, True) if run.receives}
    with_parameters = [
        module for module in ran if any(part.requires_grad for part in module.parameters())
    ]
    reached = [module for module in ran if id(module) in trained]
    return (reached or with_parameters or ran)[-1]


def _linear_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in every_module(model) if isinstance(module, nn.Linear)]


def _linear_within(head: nn.Module) -> list[nn.Module]:
    """List the layers that a head consists of, if it is not a layer itself."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    if isinstance(head, kinds):
        return []
    return [module for module in every_module(head)[1:] if isinstance(module, kinds)]


def _name_of(model: nn.Module, head: nn.Module | None) -> str | None:
    if head is None:
        return None
    return next((name for name, module in model.named_modules() if module is head), None)
