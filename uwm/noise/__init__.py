"""Floor 1, the maths of corruption: how a clean token becomes a noisy one at a level."""
