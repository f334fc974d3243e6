"""Tensor functions, each with a plain reference beside the fast implementation."""
