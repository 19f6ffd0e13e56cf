"""The last layer of a model: which it is, and what of it is trained."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, cast

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


_log = logging.getLogger(__name__)


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


# How a batch passes through the model: in eval mode without gradients, with them, or as training
# passes it, but for dropout and normalization.
Mode = Literal["plain", "graph", "training"]
Pass = Callable[[Iterable[nn.Module], Mode], list[Run]]  # tells which of some modules ran, in order


class Structure:
    """The modules and parameters of a model, and which of these are trained, at some time.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = every_module(model)
        self._parts: list[tuple[Mapping[str, object], list[object]]] = [
            (parts, list(parts.values()))
            for module in modules
            for parts in (module._modules, module._parameters)
        ]
        parameters = [part for module in modules for part in module._parameters.values()]
        self._parameters = [parameter for parameter in parameters if parameter is not None]
        self._trained = [parameter.requires_grad for parameter in self._parameters]

    def is_as_before(self) -> bool:
        """Whether the model still has these, in the same order."""
        for now, before in self._parts:
            if len(now) != len(before) or not all(map(operator.is_, now.values(), before)):
                return False
        return self._trained == [parameter.requires_grad for parameter in self._parameters]


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
        self._is_guess = False
        self._announced: nn.Module | None = None
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
        if head is None or _linear_within(head):
            self.searched = self._model if head is None else head
            head = self._search(pass_) or head
        if head is None:
            raise ValueError(
                "the model must have a linear layer that runs, or name its last layer with head=; "
                f"got {type(self._model).__name__} without one. {CALL_THE_MODULE}"
            )
        self._found = head
        self.version += 1
        return head

    def look_closer(self, pass_: Pass) -> bool:
        """Search once more, with gradients on, for a layer that the loss depends on.

        Args:
            pass_: Tells which of some modules run.

        Returns:
            Whether it is another one.
        """
        if not self._is_guess:
            return False
        before, self._is_guess = self._found, False
        self._found = self._reached_by_gradients(pass_)
        return self._found is not before

    def confirm(self) -> None:
        """Hear that the loss depends on the layer that was found, and say once which it is."""
        self._is_guess = False
        if self._found is not None and self._found is not self._announced:
            self._announced = self._found
            _log.info("the last layer is %s", self.describe())

    def describe(self) -> str:
        """Say in words which layer was found: its name, kind and shape.

        Returns:
            Such as `'fc', Linear(512 -> 10)`; of an adapter, that it is one.
        """
        head = self._found
        if head is None:
            return "not known yet"
        name, weight = _name_of(self._model, head), getattr(head, "weight", None)
        shape = f"({weight.shape[1]} -> {weight.shape[0]})" if isinstance(weight, Tensor) else ""
        said = f"{name or 'outside of the model'!r}, {type(head).__name__}{shape}"
        if "lora_" in (name or ""):
            said += (
                ", a low-rank adapter: gradients are those of the adapter. Train the layer around "
                "it in full (modules_to_save= of PEFT), or name another with head="
            )
        return said

    def look_further(self) -> bool:
        """Forget a layer that did not run.

        Returns:
            Whether another one may be found.
        """
        self._found = None
        if self.searched is None and self._named_now() is None:  # it was declared
            self._asks_model = False
            return True
        return self.searched is not None

    def _search(self, pass_: Pass) -> nn.Module | None:
        """Find the last layer that runs, or that gradients of training reach."""
        assert self.searched is not None
        candidates = _layers(self.searched, self._model)
        runs = pass_([self.searched, *candidates], "plain")
        if self.searched is not self._model:
            self._check_output(runs, candidates)
        ran = [run.module for run in runs if any(run.module is one for one in candidates)]
        if not ran:
            return None
        self._is_guess = _is_trained(ran[-1])
        return ran[-1] if self._is_guess else self._reached_by_gradients(pass_)

    def _reached_by_gradients(self, pass_: Pass) -> nn.Module | None:
        # Of a teacher that runs last the output has no gradient; but then, a model may switch
        # gradients off in eval mode.
        assert self.searched is not None
        candidates = _layers(self.searched, self._model)
        runs = pass_(candidates, "graph")
        if not runs:
            return None
        if not runs[-1].receives:
            trained = {id(run.module) for run in pass_(candidates, "training") if run.receives}
            reached = [run for run in runs if id(run.module) in trained]
            runs = reached or [run for run in runs if _is_trained(run.module)] or runs
        return runs[-1].module

    def _check_output(self, runs: list[Run], layers: list[nn.Module]) -> None:
        for run in runs:
            if run.module is self.searched and run.returned is not Tensor:
                name = self._name or type(self.searched).__name__
                names = [f"{name}.{_name_of(self.searched, layer)}" for layer in layers]
                raise ValueError(
                    f"the head must return a tensor; {name!r} returns a {run.returned.__name__}. "
                    f"Name one of its layers with head=: {', '.join(names)}."
                )

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


def _is_trained(layer: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in layer.parameters())


def _layers(searched: nn.Module, model: nn.Module) -> list[nn.Module]:
    """List what may be the last layer: convolutions, too, within a head that was named."""
    if searched is not model:
        return _linear_within(searched)
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
