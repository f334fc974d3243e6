"""The production peer in a world made of a seed."""
