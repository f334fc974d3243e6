"""Error feedback for contributions whose fate is known only later, perhaps after the next one.

What encoding leaves out of a contribution is added to the next (Karimireddy et al., arXiv
1901.09847). Whether a contribution counts is decided rounds later, and with staleness 1 the next
one may have been encoded by then, in the hope that it does. So each is kept until its fate is
known. Accepted: what it left out is the residual. Refused, or the round null: the whole update goes
back into the residual, once, for the next contribution that is not encoded yet; the residual is
never longer for it than one update, or than it was: a sparse codec's is many updates long. It
knows neither models nor rounds to come.

Shape suffix: `P` parameters.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class Pending:
    """A contribution on its way: what error feedback keeps if it is accepted, and if it is not."""

    round: int
    residual_P: Tensor
    whole_P: Tensor


@dataclass(slots=True)
class Feedback:
    """The residual once all fates are known, and the contributions whose fate is not, in order."""

    residual_P: Tensor
    pending: list[Pending] = field(default_factory=list)

    def unsent_P(self) -> Tensor:
        """Return what the next contribution should add, if those under way are accepted."""
        return self.pending[-1].residual_P if self.pending else self.residual_P

    def sent(self, round_number: int, *, residual_P: Tensor, whole_P: Tensor) -> None:
        """Note a contribution: what its encoding left out, and the update as it was trained."""
        earlier = [one for one in self.pending if one.round < round_number]
        self.pending = [*earlier, Pending(round_number, residual_P, whole_P)]

    def settle(self, round_number: int, *, accepted: bool) -> None:
        """Learn the fate of a round's contribution; one of an earlier round was refused."""
        while self.pending and self.pending[0].round <= round_number:
            first = self.pending.pop(0)
            if first.round == round_number and accepted:
                self.residual_P = first.residual_P
                continue
            whole_P = self.residual_P + first.whole_P
            longest = max(float(first.whole_P.norm()), float(self.residual_P.norm()))
            length = float(whole_P.norm())
            self.residual_P = whole_P * min(1.0, longest / max(length, 1e-12))
            for later in self.pending:  # it counted on what the refused one would leave
                later.residual_P = later.residual_P + (self.residual_P - first.residual_P)

    def forget(self) -> None:
        """Drop what is under way: the agreed state came from elsewhere, and fates are unknown."""
        self.pending = []

    def reset(self) -> None:
        """Start afresh, with nothing left to send."""
        self.residual_P = self.residual_P.new_zeros(self.residual_P.shape)
        for one in self.pending:
            one.residual_P = one.residual_P.new_zeros(one.residual_P.shape)
