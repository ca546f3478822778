"""Training: the loop, the loss, optimizers, runs, plans, several processes, recipes."""
