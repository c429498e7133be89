"""Floor 1, the network: layers, one backbone, encoders, codecs. Knows tokens and levels, not modes or data."""
