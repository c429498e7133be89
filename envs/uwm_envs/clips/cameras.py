"""Pictures, depth and segmentation of the table by ray casting: every pixel is the nearest of a few exact intersections.

```
camera (pinhole)   origin ---- ray ----> table z = 0 | block: upright cylinder | link: capsule between two points
```

Depth is along the camera's axis, in metres. Segmentation: 0 table and background, 1 to 4 blocks in the order of `COLOURS`, 5 the arm.
A camera has the matrices of computer vision: pixel ~ K (R point + t), x to the right, y down, z ahead.
"""

from dataclasses import dataclass

import numpy as np

from uwm_envs.clips.arm import BASE, BLOCK, TIP, Table, elbow

HEIGHT = 0.16  # of blocks
LINK, LEVEL = 0.05, 0.22  # radius of links, and how high above the table they move
ARM, FAR = 5, 50.0
PAINT = np.array([(70, 74, 84), (214, 48, 40), (52, 168, 72), (48, 92, 214), (236, 190, 40), (208, 208, 214)], float)


@dataclass(frozen=True)
class Camera:
    """Position, rotation from the world (3, 3) and focal length in picture heights."""

    position: np.ndarray
    rotation: np.ndarray
    focal: float

    def intrinsics(self, side: int) -> np.ndarray:
        """K (3, 3) for square pictures of this side."""
        return np.array([[self.focal * side, 0, side / 2], [0, self.focal * side, side / 2], [0, 0, 1.0]])

    @property
    def extrinsics(self) -> np.ndarray:
        """[R | t] (3, 4)."""
        return np.hstack([self.rotation, -(self.rotation @ self.position)[:, None]])

    def rays(self, side: int) -> np.ndarray:
        """Directions through the middles of all pixels in the world, (side * side, 3), of length 1 along the camera's axis."""
        middle = (np.arange(side) + 0.5 - side / 2) / (self.focal * side)
        across, down = np.meshgrid(middle, middle)
        return np.stack([across, down, np.ones_like(across)], axis=-1).reshape(-1, 3) @ self.rotation


def look(position, at, focal: float, up=(0.0, 1.0, 0.0)) -> Camera:
    """A camera at `position` that looks `at` a point."""
    position = np.array(position, float)
    ahead = np.array(at, float) - position
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, up)
    right /= np.linalg.norm(right)
    return Camera(position, np.stack([right, np.cross(ahead, right), ahead]), focal)


CAMERAS = {
    "top": look((0.0, 0.0, 4.0), (0.0, 0.0, 0.0), 1.75),
    "front": look((0.0, -3.2, 2.4), (0.0, 0.05, 0.0), 1.55, up=(0, 0, 1)),
    "side": look((3.0, -0.6, 2.2), (0.0, 0.0, 0.0), 1.5, up=(0, 0, 1)),
}


def picture(table: Table, camera: Camera, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frame (side, side, 3) uint8, depth (side, side) float32 and segmentation (side, side) uint8."""
    rays, origin = camera.rays(side), camera.position
    joint, tip = elbow(table.tip), table.tip
    hits = [_plane(origin, rays), *(_cylinder(origin, rays, block) for block in table.blocks)]
    lift = lambda place, height=LEVEL: np.append(place, height)  # noqa: E731
    links = [_capsule(origin, rays, lift(a), lift(b), LINK) for a, b in ((BASE, joint), (joint, tip))]
    finger = _capsule(origin, rays, lift(tip), lift(tip, TIP), TIP)
    distances = np.stack([*(distance for distance, _ in hits), np.minimum.reduce([distance for distance, _ in (*links, finger)])])
    shades = [shade for _, shade in hits]
    parts = np.stack([distance for distance, _ in (*links, finger)])
    shades.append(np.choose(parts.argmin(axis=0), [shade for _, shade in (*links, finger)]))
    nearest = distances.argmin(axis=0)
    depth = distances.min(axis=0)
    lost = depth >= FAR
    label = np.where(lost, 0, nearest).astype(np.uint8)
    bright = np.where(lost, 0.5, np.choose(nearest, shades))
    colour = np.clip(PAINT[label] * bright[:, None], 0, 255).astype(np.uint8)
    return colour.reshape(side, side, 3), np.minimum(depth, FAR).astype(np.float32).reshape(side, side), label.reshape(side, side)


def _plane(origin, rays):
    """The table with a soft chequer, so that its motion in a moving picture could be seen; nothing beyond its edge."""
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], FAR)
    point = origin[:2] + distance[:, None] * rays[:, :2]
    distance = np.where((np.abs(point) <= 1).all(axis=1), distance, FAR)
    return distance, 0.92 + 0.16 * (np.floor(2 * point).sum(axis=1) % 2)


def _cylinder(origin, rays, centre):
    """An upright block: its wall and its top."""
    away = origin[:2] - centre
    a, b = (rays[:, :2] ** 2).sum(axis=1), rays[:, :2] @ away
    root = b**2 - a * (away @ away - BLOCK**2)
    wall = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / np.maximum(a, 1e-12), FAR)
    height = origin[2] + wall * rays[:, 2]
    wall = np.where((wall > 0) & (height >= 0) & (height <= HEIGHT), wall, FAR)
    with np.errstate(divide="ignore", invalid="ignore"):
        top = np.where(rays[:, 2] < 0, (HEIGHT - origin[2]) / rays[:, 2], FAR)
    place = away + top[:, None] * rays[:, :2]
    top = np.where((place**2).sum(axis=1) <= BLOCK**2, top, FAR)
    return np.minimum(wall, top), np.where(top < wall, 1.0, 0.7)


def _capsule(origin, rays, a, b, radius):
    """A rounded rod from a to b: the nearest of its wall and its two end spheres."""
    axis, to = b - a, origin - a
    squared, speed = axis @ axis, rays @ axis
    aa = (rays**2).sum(axis=1) * squared - speed**2
    bb = (rays @ to) * squared - speed * (axis @ to)
    cc = (to @ to) * squared - (axis @ to) ** 2 - radius**2 * squared
    root = bb**2 - aa * cc
    wall = np.where(root > 0, (-bb - np.sqrt(np.maximum(root, 0))) / np.where(np.abs(aa) > 1e-12, aa, 1e-12), FAR)
    along = axis @ to + wall * speed
    wall = np.where((wall > 0) & (along > 0) & (along < squared), wall, FAR)
    ends = np.minimum(_sphere(origin, rays, a, radius), _sphere(origin, rays, b, radius))
    return np.minimum(wall, ends), np.full(len(rays), 1.0)


def _sphere(origin, rays, centre, radius):
    to = origin - centre
    a, b = (rays**2).sum(axis=1), rays @ to
    root = b**2 - a * (to @ to - radius**2)
    distance = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, FAR)
    return np.where(distance > 0, distance, FAR)
