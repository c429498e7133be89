"""The T of Push-T as plane geometry: where its two rectangles are, and how much of one T covers another.

      0.12 m               Body frame: origin at the centre of mass, angle 0 as drawn,
+----------------+         anticlockwise positive. A pose is (x m, y m, angle rad).
|      bar       | 0.03
+----+  o   +----+         o is 0.0407 m below the upper edge. (The original task puts its
     | stem |              origin in the middle of that edge and lets y grow downwards.)
     |      | 0.09
     +------+
       0.03
"""

import math

import numpy as np

# centre (x, y) and half size (x, y) of bar and stem in the body frame, m
BAR = ((0.0, 0.18 / 7), (0.06, 0.015))
STEM = ((0.0, -0.24 / 7), (0.015, 0.045))
AREA_M2 = 0.0063
# the goal of the known task: upper edge's middle at the centre of the square, turned by 45 degrees clockwise
GOAL_POSE = (-0.285 / 7 * math.sqrt(0.5), -0.285 / 7 * math.sqrt(0.5), -math.pi / 4)


def coverage(pose, goal=GOAL_POSE) -> float:
    """Share of the T at `goal` that the T at `pose` covers, in [0, 1], exact.

    The rectangles of one T do not overlap, so the areas of the four pairwise intersections add up.
    """
    mine, wanted = ([_corners(part, *place) for part in (BAR, STEM)] for place in (pose, goal))
    shared = sum(_area(_clip(a, b)) for a in mine for b in wanted)
    return min(1.0, shared / AREA_M2)


def distance(points, pose) -> np.ndarray:
    """Distance (m) from each of `points` (..., 2) to the T at `pose` (..., 3); 0 inside. Leading shapes broadcast."""
    offset, _ = nearest(points, pose)
    return np.hypot(offset[..., 0], offset[..., 1])


def nearest(points, pose) -> tuple[np.ndarray, np.ndarray]:
    """Vector from the nearest point of the T to each point, and that nearest point; both (..., 2), world frame, m.

    points: (..., 2). pose: (..., 3). Inside the T the vector is 0 and the nearest point is the point itself.
    """
    points, pose = np.asarray(points), np.asarray(pose)
    cos, sin = np.cos(pose[..., 2]), np.sin(pose[..., 2])
    dx, dy = points[..., 0] - pose[..., 0], points[..., 1] - pose[..., 1]
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    bar, stem = (_away(u, v, part) for part in (BAR, STEM))
    first = bar[2] <= stem[2]
    au, av = np.where(first, bar[0], stem[0]), np.where(first, bar[1], stem[1])
    offset = np.stack((cos * au - sin * av, sin * au + cos * av), -1)
    return offset, points - offset


def outline(pose) -> np.ndarray:
    """The eight corners (8, 2) of the T, anticlockwise from the upper left one; (..., 8, 2) for poses (..., 3)."""
    pose = np.asarray(pose, dtype=np.float64)
    (_, bar_y), (bar_w, bar_h), (_, stem_y), (stem_w, stem_h) = *BAR, *STEM
    top, neck, foot = bar_y + bar_h, bar_y - bar_h, stem_y - stem_h
    half = np.array([(-bar_w, top), (-bar_w, neck), (-stem_w, neck), (-stem_w, foot)])
    body = np.concatenate((half, half[::-1] * (-1, 1)))
    cos, sin = np.cos(pose[..., 2])[..., None], np.sin(pose[..., 2])[..., None]
    x = pose[..., 0, None] + cos * body[:, 0] - sin * body[:, 1]
    y = pose[..., 1, None] + sin * body[:, 0] + cos * body[:, 1]
    return np.stack((x, y), -1)


def _away(u, v, part):
    (cu, cv), (hu, hv) = part
    u, v = u - cu, v - cv
    au, av = u - np.clip(u, -hu, hu), v - np.clip(v, -hv, hv)
    return au, av, au * au + av * av


def _corners(part, x, y, angle):
    (cx, cy), (hx, hy) = part
    cos, sin = math.cos(angle), math.sin(angle)
    local = ((cx - hx, cy - hy), (cx + hx, cy - hy), (cx + hx, cy + hy), (cx - hx, cy + hy))
    return [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in local]


def _clip(polygon, window):
    """Sutherland-Hodgman: cut `polygon` by each edge of the convex, anticlockwise `window`."""
    for (ax, ay), (bx, by) in zip(window, window[1:] + window[:1], strict=True):
        kept, heights = [], [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for x, y in polygon]
        for i, (x, y) in enumerate(polygon):
            (px, py), before, here = polygon[i - 1], heights[i - 1], heights[i]
            if (before < 0) != (here < 0):
                share = before / (before - here)
                kept.append((px + share * (x - px), py + share * (y - py)))
            if here >= 0:
                kept.append((x, y))
        polygon = kept
    return polygon


def _area(polygon):
    following = polygon[1:] + polygon[:1]
    return 0.5 * abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in zip(polygon, following, strict=True)))
