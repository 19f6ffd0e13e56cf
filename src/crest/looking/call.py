"""One call of the last layer, watched from inside a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from crest.looking.head import trains_bias

__all__ = ["HeadCall", "depends_on", "graph_behind", "nothing_saved", "replaced_forward"]

Forward = Callable[..., Any]

_ABSENT = object()
_ADVICE = "Name a linear layer with head=."


@contextmanager
def replaced_forward(
    modules: Iterable[nn.Module], replace: Callable[[nn.Module, Forward], Forward]
) -> Iterator[None]:
    """Put something in place of the `forward` of modules, and take it away again.

    Unlike a hook it sees calls by keyword, and of `module.forward(x)`.

    Args:
        modules: Whose.
        replace: From a module and its `forward` to what runs instead.

    Yields:
        Nothing.
    """
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            own = vars(module).get("forward", _ABSENT)  # as of a model that was patched
            forward = module.forward
            before.append((module, own))
            vars(module)["forward"] = replace(module, forward)
        yield
    finally:
        for module, own in before:
            if own is _ABSENT:
                del vars(module)["forward"]
            else:
                vars(module)["forward"] = own


def nothing_saved(
    until: Callable[[], bool] = lambda: False,
) -> torch.autograd.graph.saved_tensors_hooks:
    """Make a graph that tells what requires grad, and keeps nothing in memory.

    Args:
        until: Whether tensors are saved from now on.

    Returns:
        A context manager.
    """
    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor if until() else None, lambda tensor: tensor
    )


def depends_on(tensor: Tensor, node: Any) -> bool:
    """Tell whether a tensor was computed from what a node of its graph gave.

    Args:
        tensor: With or without a graph.
        node: A `grad_fn`.

    Returns:
        Whether the node is found behind it.
    """
    return node is not None and any(node is found for found in graph_behind(tensor))


def graph_behind(tensor: Tensor) -> Iterator[Any]:
    """Walk the nodes of the graph behind a tensor.

    Args:
        tensor: With or without a graph.

    Yields:
        Each node once, from the tensor on.
    """
    seen: set[Any] = {None}
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack.extend([parent for parent, _ in node.next_functions])


class HeadCall:
    """What the last layer takes and gives in a pass, cut out of its graph.

    Attributes:
        head: The last layer.
        bias: Whether gradients by its bias count.
        cut_input: As given.
        count: How often it ran; what follows is of the first time.
        inputs: A leaf of its own, h.
        outputs: What the rest of the pass is made from. A leaf of its own, of which the model gets
            a copy, so that derivatives by it are right even if the model goes on in place.
        own_outputs: The same values, with a graph to `inputs` and parameters.
        node: Of that graph, what gives `own_outputs`.
        tested: Parameters, and tensors made of them, that require grad while the layer runs.

    Args:
        head: The last layer.
        prepare: What to do with the input on its way in.
        name: Gives the name of a module, for messages.
        cut_input: Whether the input is a leaf, so that the graph ends there.
        cut_output: Whether the output is one.
        test: Whether the layer's parameters are to require grad, frozen ones too, until `end_test`.
    """

    def __init__(
        self,
        head: nn.Module,
        prepare: Callable[[nn.Module, Tensor], Tensor],
        name: Callable[[nn.Module], str],
        *,
        cut_input: bool = True,
        cut_output: bool = True,
        test: bool = False,
    ) -> None:
        self.head = head
        self.bias = trains_bias(head)
        self.cut_input = cut_input
        self.count = 0
        self.inputs = self.outputs = self.own_outputs = torch.empty(0)
        self.node: Any = None
        self.tested: list[Tensor] = []
        self._prepare, self._name = prepare, name
        self._cut_output = cut_output
        self._test = test
        self._frozen: list[Tensor] = []  # until the test

    @contextmanager
    def watching(self, *, keeps_graph: bool) -> Iterator[None]:
        """Watch the pass inside.

        Args:
            keeps_graph: Whether gradients are on before the head, too. Models that switch them off
                for a while in eval mode switch back to what was before. What the graph saves
                before the head is dropped, as nothing will ask for it.

        Yields:
            Nothing.
        """

        def replace(_: nn.Module, forward: Forward) -> Forward:
            def run(*arguments: Any, **named: Any) -> Any:
                self.count += 1
                if self.count > 1:
                    return forward(*arguments, **named)
                with _normal_mode():
                    torch.set_grad_enabled(True)  # until the pass ends: all that follows needs it
                    return self._run(forward, arguments, named)

            return run

        def switch_on(*_: object) -> None:
            torch.set_grad_enabled(True)  # for hooks that make the weight out of others

        with ExitStack() as stack:
            stack.enter_context(replaced_forward([self.head], replace))
            stack.enter_context(torch.set_grad_enabled(keeps_graph))
            if self.head._forward_pre_hooks:
                hook = self.head.register_forward_pre_hook(switch_on, prepend=True)
                stack.callback(hook.remove)
            if keeps_graph and self.cut_input:
                stack.enter_context(nothing_saved(until=lambda: bool(self.count)))
            try:
                yield
            except BaseException:
                self.end_test()
                raise

    def end_test(self) -> None:
        """Freeze again what was frozen."""
        for tensor in self._frozen:
            tensor.requires_grad_(False)
        self._frozen = []

    def _run(self, forward: Forward, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        head = self.head
        torch.clear_autocast_cache()  # of weights that were cast where no gradient was wanted
        given = arguments[0] if arguments else next(iter(named.values()), None)
        if not isinstance(given, Tensor):
            raise ValueError(
                f"the head must take a tensor first; {self._name(head)} takes {_kind(given)}. "
                f"{_ADVICE}"
            )
        hidden = given.detach() if self.cut_input else given
        if hidden.is_inference():  # cannot take part in a graph
            hidden = hidden.clone()
        hidden = self._prepare(head, hidden)
        if self.cut_input:
            self.inputs = hidden = hidden.requires_grad_()
        in_place = self.cut_input and not isinstance(head, (nn.Linear, nn.modules.conv._ConvNd))
        if in_place:  # which a leaf does not allow
            hidden = hidden.clone()
        version = hidden._version
        if arguments:
            arguments = (hidden, *arguments[1:])
        else:
            named = {**named, next(iter(named)): hidden}
        cached = parametrize.is_parametrized(head) and self._test
        with parametrize.cached() if cached else nullcontext():
            if self._test:
                self._begin_test(head)
            output = forward(*arguments, **named)
        if in_place and hidden._version != version:
            with torch.no_grad():
                given.copy_(hidden)  # the rest of the model sees it, as in training
        if not isinstance(output, Tensor):
            raise ValueError(
                f"the head must return a tensor; {self._name(head)} returns {_kind(output)}. "
                f"{_ADVICE}"
            )
        self.own_outputs, self.node = output, output.grad_fn
        if not self._cut_output:
            return output
        self.outputs = output.detach().requires_grad_()
        return self.outputs.clone()

    def _begin_test(self, head: nn.Module) -> None:
        applied: list[Any] = [getattr(head, "weight", None), getattr(head, "bias", None)]
        for tensor in [*applied, *head.parameters()]:  # what others are made into comes first
            if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_floating_point():
                continue  # one of few bits, or spread over devices
            if not tensor.requires_grad:
                self._frozen.append(tensor.requires_grad_())
            if not any(tensor is other for other in self.tested):
                self.tested.append(tensor)


def _normal_mode() -> AbstractContextManager[Any]:
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
