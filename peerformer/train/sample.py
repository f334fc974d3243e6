"""A few tokens from the model in training, so that a person sees what it has learned.

The same seed at every step: what changes between two samples is the model. Knows nothing about
when samples are taken or where they are shown.
"""

from peerformer.config import TrainingConfig
from peerformer.data.tokenizer import Tokenizer
from peerformer.generate.engine import generate
from peerformer.generate.sampling import DEFAULT
from peerformer.model.transformer import Transformer


def sample_text(model: Transformer, tokenizer: Tokenizer, settings: TrainingConfig) -> str:
    """Return how the model goes on with the prompt of the settings."""
    end, stream, was_training = tokenizer.end_of_text_id, tokenizer.stream(), model.training
    model.eval()
    try:
        tokens = generate(
            model,
            tokenizer.encode(settings.sample_prompt or "") or [end],
            sampling=DEFAULT,
            tokens_max=settings.sample_tokens,
            stop_ids={end},
            seed=settings.seed,
        )
        return "".join([stream.feed(token) for token in tokens])
    finally:
        model.train(was_training)
