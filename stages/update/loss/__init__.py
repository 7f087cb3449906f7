"""The terms of the loss: tensors only. N is the completion tokens of a micro-batch, in row order, R its rows."""
