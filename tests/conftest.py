"""What every test gets: rendering without a screen, one thread a process, and property tests that repeat exactly."""

import os

# Before torch and mujoco are imported: pytest-xdist gives each core a process, and more threads than cores only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("WANDB_MODE", "disabled")

from hypothesis import settings

# A shared machine stalls now and then: a deadline for each example would fail for that, and the suite has its own time limit.
settings.register_profile("uwm", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("uwm")
