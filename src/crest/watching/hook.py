"""Sees a loop by itself: outputs in the user's own forward, their gradients in his backward.

A forward hook on the model keeps each output that has a graph, and hangs a hook on it. What comes
back is the true gradient, rows scaled by weight / m, accumulation and loss scaling. The losses and
their derivatives are computed from the kept output (`replay`), and taken in for a batch only if the
gradient is theirs in every row (`guard`).
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from crest.own_passes import in_own_pass
from crest.watching.bundle import Bundle, Fit
from crest.watching.calls import Call, HandedOut, example_rows
from crest.watching.evidence import find_by_inputs
from crest.watching.guard import Verdict, compare
from crest.watching.reasons import Reasons
from crest.watching.replay import CannotReplay, Replay
from crest.watching.tap import register_tap, tapped_output, unregister_tap

__all__ = ["Watch"]

_MOST_WAITING = 64  # batches; frameworks fetch up to an accumulation group ahead
_BEHIND = 16  # batches after which one that others overtook is given up
_MOST_TRIES = 16  # batches that a gradient is compared with
_FEW_TRIES = 2  # once as many calls in a row fitted none
_SURE = 1e-2  # chance below which labels alone tell a batch

_LEAF = tree_flatten(None)[1]  # how a tensor by itself is nested

_MOST_HELD = 1 << 22  # numbers of gradients that wait for the next batch, 16 MiB
_REGULAR = 8  # batches in a row that fit, before calls wait for each other

File = Callable[[int, Tensor, Tensor, Tensor], None]


class Watch:
    """Files what training shows under the batch that it was shown of, and refuses what fits none.

    Attributes:
        calls_seen: Forward passes of the model with a graph, so far.
        handed_out: Batches handed out, so far.
        taken_in: Of these, those whose gradients were filed; parts count as parts.

    Args:
        model: The model that the loop calls, compiled or wrapped as it is there.
        replay: Computes losses and derivatives from an output.
        file: Is given steps taken, and indices, losses and derivatives of trained examples.
    """

    def __init__(self, model: nn.Module, replay: Replay, file: File) -> None:
        self.calls_seen = 0
        self.handed_out = 0
        self.taken_in = 0.0
        self._replay = replay
        self._file = file
        self._waiting: deque[HandedOut] = deque()
        self._recent: deque[HandedOut] = deque(maxlen=4)  # a second forward of them is no news
        self._arrived: list[Call] = []
        self._tapped: dict[int, Call] = {}
        self._depth = 0  # of modules with a hook that are running
        self._last = 0  # number of the batch taken in last
        self._in_vain = 0  # calls in a row that fitted no batch
        self._in_a_row = 0  # batches that fitted since one did not
        self._bundle = Bundle(replay)
        self._scale: float | None = None
        self._reasons = Reasons()
        self._handles: list[Any] = []
        modules = _and_what_it_wraps(model)
        self._number = register_tap(modules[-1], self)
        for module in modules:
            self._hook(module)
        weakref.finalize(self, _remove, self._handles).atexit = False

    def hand_out(self, step: int, indices: Tensor, weights: Tensor, batch: Any) -> None:
        """Hear of a batch that the loop gets now.

        Args:
            step: Optimizer steps taken with it.
            indices: Of its examples, int64, shape (m,).
            weights: Of its examples, shape (m,).
            batch: Without weights.
        """
        self.handed_out += 1
        self._waiting.append(HandedOut(self.handed_out, step, indices, weights, batch))
        if len(self._waiting) > _MOST_WAITING:
            self._waiting.popleft()

    def settle(self) -> None:
        """File what came back, in the order of the forward passes."""
        self.look()
        self._take_bundle()

    def look(self) -> None:
        """Tell which batches gradients are of that came back; most are filed some steps later."""
        self._see()
        while self._waiting and self._waiting[0].number < self._last - _BEHIND:
            self._waiting.popleft()

    def _see(self) -> None:
        calls, self._arrived = sorted(self._arrived, key=lambda call: call.number), []
        for call in calls:
            found = find_by_inputs(call, [*reversed(self._waiting), *reversed(self._recent)])
            if found is not None:
                one, start = found
                if one.was_taken(start, call.num_rows):
                    continue  # seen before: a second forward of the same batch, as SAM has it
                if self._in_a_row >= _REGULAR and start == 0 and self._bundle.add(call, one):
                    self._check_off(one, 0, one.size)
                    continue
            self._take_bundle()
            self._match(call, found)
        if self._bundle.is_full:
            self._take_bundle()

    @property
    def missed(self) -> int:
        """How many batches can no longer be taken in."""
        pending = len(self._waiting) + len(self._bundle)
        return int(self.handed_out - self.taken_in) - pending

    @property
    def unseen_batch(self) -> Any:
        """The first batch, if it was trained on without a call of the model; else None."""
        first = self.handed_out == 1 and not self.calls_seen
        return self._waiting[0].batch if first else None

    def watch_head(self, head: nn.Module) -> None:
        """Watch the last layer, too, as the loop never calls the model itself.

        Args:
            head: The last layer.
        """
        self._hook(head)

    def explain(self) -> str:
        """Say in words why batches were not taken in."""
        return self._reasons.explain(self.handed_out, self.taken_in)

    def close(self) -> None:
        """Remove the hooks."""
        _remove(self._handles)
        unregister_tap(self._number, self)

    # What the hooks tell

    def _hook(self, module: nn.Module) -> None:
        enter, leave = _WeakHook(self, "_enter"), _WeakHook(self, "_leave")
        self._handles += [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True, always_call=True),
        ]

    def _enter(self, arguments: Any, keywords: Any, _: Any) -> None:
        if not self._depth and self._holds_much and _is_plain_forward():
            self._see()  # batches were fetched ahead: the next one may be long in coming
        self._depth += 1

    @property
    def _holds_much(self) -> bool:
        """Whether gradients wait that are large, as of sequences over a vocabulary."""
        waiting = (
            one for call in self._arrived for some in call.gradients.values() for one in some
        )
        return sum(gradient.numel() for gradient in waiting) > _MOST_HELD

    def _leave(self, arguments: Any, keywords: Any, output: Any) -> None:
        self._depth = max(self._depth - 1, 0)
        if self._depth or output is None or not self._waiting:
            return
        if in_own_pass() or not torch.is_grad_enabled():
            return
        leaves, spec = ([output], _LEAF) if isinstance(output, Tensor) else tree_flatten(output)
        where = [
            i
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor)
            and leaf.requires_grad
            and leaf.is_floating_point()
            and leaf.ndim
        ]
        if not where:
            return
        call = self._new_call(
            [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves],
            spec,
            where,
            _detached(_tensors(arguments, keywords)),
        )
        for i in where:
            try:
                leaves[i].register_hook(lambda gradient, i=i: self._arrive(call, i, gradient))
            except RuntimeError:  # inside of torch.func
                return

    def _new_call(
        self, leaves: list[Any], spec: Any, where: list[int], inputs: list[Tensor]
    ) -> Call:
        self.calls_seen += 1
        versions = [leaves[i]._version for i in where]
        return Call(self.calls_seen, leaves, spec, where, versions, inputs, self.handed_out)

    def _arrive(self, call: Call, leaf: int, gradient: Tensor) -> None:
        if torch._C._functorch.maybe_current_level() is not None:
            return
        if not call.gradients:
            self._arrived.append(call)
        call.gradients.setdefault(leaf, []).append(gradient.detach().clone())

    def tap_forward(
        self, call: int, output: Tensor, inputs: list[Tensor], *, names_logits: bool
    ) -> bool:
        """Hear of an output inside a compiled graph.

        Args:
            call: Its number.
            output: Of the model, its logits where it was a mapping.
            inputs: Tensors that the model was called with.
            names_logits: Whether it was a mapping.

        Returns:
            Whether it may be a pass of training.
        """
        if in_own_pass() or not self._waiting or self._depth:
            return False
        seen = self._new_call([output.detach().clone()], _LEAF, [0], _detached(inputs))
        seen.names_logits = names_logits
        self._tapped[call] = seen
        while len(self._tapped) > _MOST_WAITING:
            del self._tapped[next(iter(self._tapped))]
        return True

    def tap_backward(self, call: int, gradient: Tensor) -> None:
        """Hear of a gradient inside a compiled graph.

        Args:
            call: Its number.
            gradient: Of its output.
        """
        seen = self._tapped.pop(call, None)
        if seen is not None:
            self._arrive(seen, 0, gradient)

    # Which batch it was

    def _match(self, call: Call, found: tuple[HandedOut, int] | None) -> None:
        """Take in the batch that a call was for, if it is one alone.

        Args:
            call: A forward pass.
            found: Batch and row that its inputs tell, if they tell one.
        """
        if found is not None:
            candidates = [found]
        else:
            most = _MOST_TRIES if self._in_vain < _MOST_TRIES else _FEW_TRIES
            by_turn = sorted(self._waiting, key=lambda o: (o.number != self._last + 1, -o.number))
            known = [one for one in by_turn if one.number <= call.latest]
            candidates = [(one, one.next_row) for one in known[:most]]
        fits, best = [], Verdict("unseen", "", -2.0)
        for one, start in candidates:
            fit = self._try(call, one, start)
            if isinstance(fit, Fit):
                fits.append(fit)
            elif fit.share > best.share:
                best = fit
        if len(fits) == 1 and found is None and len(self._waiting) > 1:
            if not self._is_telling(call, fits[0]):
                fits, best = [], Verdict("labels")
        elif len(fits) > 1:
            fits, best = [], Verdict("several")
        if fits:
            one, start = fits[0].one, fits[0].start
            self._check_off(one, start, call.num_rows)
            self._take_in(fits[0])
        elif candidates and best.reason is not None:
            self._refuse(best.reason, best.note)

    def _take_bundle(self) -> None:
        """Take in the batches that waited for each other."""
        for call, one, fit in self._bundle.take():
            found: Fit | Verdict = self._try(call, one, 0) if fit is None else fit
            if isinstance(found, Fit):
                self._take_in(found)
            elif found.reason is not None:
                self._refuse(found.reason, found.note)

    def _take_in(self, fit: Fit) -> None:
        one, k = fit.one, fit.losses.shape[0]
        self._file(one.step, one.indices[fit.start : fit.start + k], fit.losses, fit.errors)
        self.taken_in += k / one.size
        self._in_vain, self._scale = 0, fit.scale
        self._in_a_row += 1
        if one.is_taken:
            one.forget_batch()

    def _refuse(self, reason: str, note: str) -> None:
        self._in_vain += 1
        self._in_a_row = 0
        self._reasons.add(reason, note)

    def _check_off(self, one: HandedOut, start: int, size: int) -> None:
        """Wait for some rows of a batch no longer."""
        self._last = one.number
        one.take(start, size)
        if one.is_taken:
            self._waiting.remove(one)
            self._recent.append(one)

    def _try(self, call: Call, one: HandedOut, start: int) -> Fit | Verdict:
        """Compare the gradient of a call with that of some rows of a batch."""
        k, m = call.num_rows, one.size
        if k + start > m:
            return Verdict("rows", f"{k} where {m} are due", -1.0)
        if call.was_changed:
            return Verdict("in place", "", -1.0)
        try:
            losses, all_errors = self._replay(call, one.part(start, k))
        except CannotReplay as error:
            return Verdict("replay", str(error), -1.0)
        weights = one.weights[start : start + k].to(losses.device)
        filed: Tensor | None = None
        scale = 0.0
        for i, errors in zip(call.where, all_errors, strict=True):
            if errors is None or len(errors) != k:
                continue
            gradients = call.gradients.get(i)
            if gradients is None:
                return Verdict("direction", "the loss of the loop does not use the output")
            if len(gradients) > 1:  # several backward passes: one of them, or all together
                gradients = [*gradients, torch.stack(gradients).sum(0)]
            verdicts = [
                compare(gradient, errors, weights, half=call.is_half, known_scale=self._scale)
                for gradient in gradients
            ]
            verdict = max(verdicts, key=lambda one: (one.reason is None, one.share))
            if verdict.reason is not None:
                return verdict
            if filed is None:
                filed, scale = errors, verdict.scale
        if filed is None:
            return Verdict("replay", "its losses do not depend on the output", -1.0)
        return Fit(one, start, losses, filed, scale)

    def _is_telling(self, call: Call, fit: Fit) -> bool:
        """Tell whether another batch of such labels would hardly fit by chance.

        Without evidence from inputs it is the labels that tell; those turned by one row show how
        often a wrong label fits.

        Args:
            call: A forward pass.
            fit: The batch that fits it.

        Returns:
            Whether the chance is small.
        """
        one, k = fit.one, len(fit.losses)
        turned = torch.arange(k).roll(1)
        try:
            _, all_errors = self._replay(call, example_rows(one.part(fit.start, k), k, turned))
        except CannotReplay:
            return False
        others = next(errors for errors in all_errors if errors is not None)
        missed = (others - fit.errors).flatten(1).norm(dim=1)
        same = int((missed <= 1e-2 * fit.errors.flatten(1).norm(dim=1) + 1e-5).sum())
        batches = 1 if one.number == self._last + 1 else len(self._waiting)
        chance: float = ((same + 1) / (k + 2)) ** k * batches
        return chance < _SURE


class _WeakHook:
    """A forward hook that does not travel: copies and pickles of the model get a dead one."""

    def __init__(self, watch: Watch | None = None, method: str = "") -> None:
        self._watch = None if watch is None else weakref.ref(watch)
        self._method = method

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        watch = None if self._watch is None else self._watch()
        if watch is None or _is_traced():
            return None
        if torch.compiler.is_compiling():
            if self._method == "_enter":
                return None
            return tapped_output(watch._number, _tensors(args, kwargs), output)
        return getattr(watch, self._method)(args, kwargs, output)

    def __deepcopy__(self, memo: Any) -> _WeakHook:
        return _WeakHook()

    def __reduce__(self) -> tuple[type[_WeakHook], tuple[()]]:
        return _WeakHook, ()


def _and_what_it_wraps(model: nn.Module) -> list[nn.Module]:
    """List a model and the models that `DistributedDataParallel` or `torch.compile` put around."""
    found = [model]
    while True:
        model = found[-1]
        inner = (
            model.module
            if isinstance(model, nn.parallel.DistributedDataParallel)
            else model._modules.get("_orig_mod")
        )
        if not isinstance(inner, nn.Module):
            return found
        found.append(inner)


def _is_traced() -> bool:
    """Tell whether a model is being written down, by `torch.jit.trace` or `torch.export`."""
    return bool(torch._C._get_tracing_state()) or torch.compiler.is_exporting()


def _is_plain_forward() -> bool:
    """Tell whether a call of the model is one of the loop's own, outside of any other pass."""
    return (
        torch.is_grad_enabled()
        and not in_own_pass()
        and torch._C._current_graph_task_id() == -1  # no backward pass that computes again
        and torch._C._functorch.maybe_current_level() is None
    )


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


def _detached(inputs: list[Tensor]) -> list[Tensor]:
    """Hold no graph; what has none stays itself, and is known by that."""
    return [given.detach() if given.requires_grad else given for given in inputs]


def _tensors(arguments: Any, keywords: Any) -> list[Tensor]:
    is_flat = not keywords and all(isinstance(given, Tensor) for given in arguments)
    leaves = arguments if is_flat else tree_flatten((arguments, keywords))[0]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
