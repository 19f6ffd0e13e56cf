"""How far an epoch has come, and which iteration over the loader may go on with it."""

from __future__ import annotations

__all__ = ["Epoch"]

_ODD = 0x9E3779B97F4A7C15  # spreads the epochs over all seeds


class Epoch:
    """One iteration at a time: the one that began last.

    An iteration that is left early ends its epoch, for the loader at hand as for one that goes on
    from a state saved after it. A state that is saved inside the loop has the rest of the epoch
    before it; one that is saved at its last batch, as Lightning and Hugging Face do at the end of
    an epoch, has the next epoch before it.

    Attributes:
        length: Batches of an epoch.
        position: Batches of the epoch handed out.
        is_open: Whether a loop is under way.
        resumes: Whether the next iteration goes on with an epoch that a state is in the midst of.

    Args:
        length: As the attribute.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.position = 0
        self.is_open = False
        self.resumes = False
        self._iteration: object | None = None  # the one that may go on

    @property
    def is_over(self) -> bool:
        """Whether every batch was handed out."""
        return self.position >= self.length

    def begin(self) -> object:
        """Begin an iteration: a new epoch, or after `load` what is left of one.

        Returns:
            What the iteration shows to go on.
        """
        if not self.resumes:
            self.position = 0
        self.resumes = False
        self.is_open = True
        self._iteration = object()
        return self._iteration

    def goes_on(self, iteration: object) -> bool:
        """Tell an iteration whether it has batches left.

        Args:
            iteration: What `begin` returned.

        Returns:
            Whether it has.

        Raises:
            RuntimeError: If another iteration began meanwhile.
        """
        if self._iteration is None:  # a state was loaded within the loop, which goes on from there
            self._iteration, self.resumes, self.is_open = iteration, False, True
        if self._iteration is not iteration:
            raise RuntimeError(
                "another iteration over this CoresetLoader began before this one was over, and a "
                "loader plans for one at a time. End the outer loop before the inner one begins, "
                "or make a second CoresetLoader."
            )
        return not self.is_over

    def end(self, iteration: object) -> bool:
        """Close the epoch, whether or not it is complete.

        Args:
            iteration: What `begin` returned.

        Returns:
            Whether it was still the one that may go on.
        """
        if self._iteration is not iteration:
            return False
        self.is_open = False
        return True

    def seed(self, seed: int, total: int) -> int:
        """Give each epoch of a run a seed of its own, the same before and after a checkpoint.

        Args:
            seed: Of the run.
            total: Batches of the run handed out.

        Returns:
            In [0, 2**63).
        """
        return (seed + (total - self.position) * _ODD) % 2**63

    def load(self, position: int, is_open: bool) -> None:
        """Continue from a state.

        Args:
            position: As the attribute, when it was saved.
            is_open: As the attribute.
        """
        self.position = position
        self.is_open = is_open
        self.resumes = is_open and not self.is_over
        self._iteration = None
