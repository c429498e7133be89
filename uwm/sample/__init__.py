"""Floor 2, from noise to data: the denoiser, one loop, step rules and the rolling buffer."""
