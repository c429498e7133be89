"""Floor 3, from data to weights: the objective, the training loops and the checkpoint. Opens no dataset itself."""
