"""How peers that need not trust each other agree: sans-IO, no clock, no thread, no tensor."""
