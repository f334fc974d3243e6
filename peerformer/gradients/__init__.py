"""What peers exchange and how it is combined: pure functions of tensors, in integers only."""
