"""From a model and a prompt to tokens: sampling, and the engine that calls it."""
