"""One replica and the loop that trains it: loss, gradients, update, checkpoint."""
