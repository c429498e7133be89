"""Unified world models with streaming diffusion policies: one network, one noise level per token, every mode a plan.

Nothing is imported here, so that `import uwm` costs nothing; import the room that you need, for example `uwm.sample`.
"""

__version__ = "0.1.0"
