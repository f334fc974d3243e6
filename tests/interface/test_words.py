"""Events in words, as the terminal and `peerformer log` say them."""

from peerformer import events
from peerformer.interface.words import words_of


def test_a_refusal_is_told_with_what_the_scorers_saw() -> None:
    refused = events.ContributionRefused(
        round=13,
        peer="ab" * 32,
        name="hardy-jay",
        reason="most scorers saw the loss rise",
        evidence="1 of 1, median +6.8 milli-nats",
    )
    assert words_of(refused) == (
        "round 13: hardy-jay refused: most scorers saw the loss rise "
        "(1 of 1, median +6.8 milli-nats)"
    )
