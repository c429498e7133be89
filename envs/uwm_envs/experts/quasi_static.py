"""What a straight push does to the T, many pushes at once, without a simulator.

The block of Push-T slides on a viscous film, so its velocity is proportional to the force on it (an ellipsoidal limit
surface, Goyal et al. 1991; pushing as a motion cone, Lynch and Mason 1996). While the disc moves a few millimetres, the
contact force is the one that moves the touched point out of the disc, and the twist of the block follows from it:

    displacement of the touched point = (I + q q' / rho^2) f,    q = (-r_y, r_x),    r from the centre of mass

Legend: M pushes, K steps.
"""

import numpy as np

from uwm_envs import tee
from uwm_envs.pusht import PUSHER_RADIUS_M

RHO2_M2 = 1.9315e-3  # inertia over mass, and turning over sliding resistance
FRICTION = 0.3


def push(poses, starts, directions, step_m, steps):
    """Move the disc `steps` times by `step_m` along `directions` (M, 2, unit) from its centre at `starts` (M, 2).

    poses: (M, 3), where the T is. step_m: (M,). Returns the T after each step, (K, M, 3); m and rad.
    """
    pose, disc = np.array(poses, dtype=np.float64), np.array(starts, dtype=np.float64)
    stride = directions * np.asarray(step_m)[:, None]
    trace = np.empty((steps, *pose.shape))
    for k in range(steps):
        disc += stride
        pose += _response(pose, disc, stride)
        trace[k] = pose
    return trace


def _response(pose, disc, stride):
    """Twist (M, 3) that takes the T out of the disc; zero where they do not touch."""
    offset, touched = tee.nearest(disc, pose)
    gap = np.hypot(offset[:, 0], offset[:, 1])
    depth = np.maximum(PUSHER_RADIUS_M - gap, 0.0)
    nx, ny = -offset[:, 0] / (gap + 1e-12), -offset[:, 1] / (gap + 1e-12)
    rx, ry = touched[:, 0] - pose[:, 0], touched[:, 1] - pose[:, 1]
    qn, qt = rx * ny - ry * nx, rx * nx + ry * ny  # q along the normal (nx, ny) and the tangent (-ny, nx)
    nn, tt, nt = 1 + qn**2 / RHO2_M2, 1 + qt**2 / RHO2_M2, qn * qt / RHO2_M2
    slip = stride[:, 1] * nx - stride[:, 0] * ny
    determinant = nn * tt - nt * nt
    fn, ft = (tt * depth - nt * slip) / determinant, (nn * slip - nt * depth) / determinant
    side = np.sign(ft)
    slides = np.abs(ft) > FRICTION * fn  # outside the friction cone: the force stays on its edge
    fn = np.where(slides, depth / (nn + FRICTION * side * nt), fn)
    ft = np.where(slides, FRICTION * side * fn, ft)
    twist = np.stack((fn * nx - ft * ny, fn * ny + ft * nx, (qn * fn + qt * ft) / RHO2_M2), -1)
    return np.where((depth > 0)[:, None], twist, 0.0)
