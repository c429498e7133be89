r"""A film of the rolling buffer: what was executed as a line, what is still to come as dots, the paler the noisier.

```
+--------+  x   ______/---|o o o . . .      left of the mark: executed; right of it: the buffer, as it is
|        |  y   ---\______|o o o . . .      when its first chunk is clean and about to be sent
| camera |  ...
+--------+     level      |### ooo ...      one square per action
```

A policy that samples the whole horizon anew shows a buffer that is clean from end to end, and another one at every call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uwm.bench import pictures
from uwm.robot.evaluate import Moment, Rollout

CAMERA, PLOT, ROW, EDGE = 240, 520, 44, 30  # pixels
BACK = 24  # ticks of what was executed
INK, PALE, PAPER, FAINT = (18, 66, 120), (214, 222, 232), (255, 255, 255), (150, 150, 150)


def film(watched: Rollout, names: Sequence[str]) -> list[np.ndarray]:
    """uint8 pictures (H, W, 3) of a watched rollout, one a tick; `names` of the numbers of an action.

    ValueError when the rollout was not watched, or an action has another number of numbers.
    """
    moments, frames = watched.moments, watched.frames
    if not moments or len(names) != moments[0].future.shape[1]:
        size = moments[0].future.shape[1] if moments else "no"
        raise ValueError(f"a film needs a watched rollout and a name per number of an action, got {size} numbers, {len(names)} names")
    executed = np.concatenate([moment.executed for moment in moments])
    low, high = executed.min(axis=0), executed.max(axis=0)
    room = 0.25 * np.maximum(high - low, 1e-3)
    picture = _Picture(names, low - room, high + room, len(moments[0].future), bool(frames))
    of = lambda moment, now: picture.draw(now, executed[:now], moment, frames[now] if frames else None)  # noqa: E731
    return [of(moment, moment.first + ahead) for moment in moments for ahead in range(len(moment.executed))]


def mp4(watched: Rollout, card: dict) -> bytes:
    """The film as the content of an MP4 file, at the speed of the world whose card this is."""
    return pictures.mp4_bytes(film(watched, card["action"]["names"]), float(card["rate_hz"]))


@dataclass(frozen=True)
class _Picture:
    """Where things are in every picture of a film."""

    names: Sequence[str]
    low: np.ndarray
    high: np.ndarray
    horizon: int
    camera: bool

    def draw(self, now: int, executed: np.ndarray, moment: Moment, frame: np.ndarray | None) -> np.ndarray:
        """One tick: `executed` (now, A) so far, the buffer of the moment."""
        try:
            from PIL import Image, ImageDraw
        except ImportError as error:
            raise ImportError("films need Pillow and PyAV, which are not installed: pip install 'uwm[viz]'") from error
        left, tall = EDGE + self.camera * CAMERA, ROW * (len(self.names) + 1) + EDGE
        image = Image.new("RGB", (2 * ((left + PLOT + 8) // 2), 2 * (max(tall, CAMERA + EDGE) // 2)), PAPER)
        pen = ImageDraw.Draw(image)
        if frame is not None:
            image.paste(Image.fromarray(frame).resize((CAMERA, CAMERA), Image.Resampling.NEAREST), (0, EDGE // 2))
        across = lambda tick: left + 60 + (PLOT - 70) * (tick - now + BACK) / (BACK + self.horizon)  # noqa: E731
        pen.line([(across(now), 4), (across(now), tall - 4)], fill=FAINT)
        pen.text((across(now) + 4, 2), f"tick {now}", fill=FAINT)
        behind = range(max(0, now - BACK), now)
        coming = [(tick, place) for place, tick in enumerate(range(moment.first, moment.first + self.horizon)) if tick >= now]
        for index, name in enumerate(self.names):
            top = 16 + ROW * index
            pen.text((left, top + ROW // 3), str(name)[:9], fill=INK)
            down = lambda value: top + (ROW - 6) * (1 - self._share(value, index))  # noqa: B023, E731
            if len(behind) > 1:
                pen.line([(across(tick), down(float(executed[tick, index]))) for tick in behind], fill=INK, width=2)
            for tick, place in reversed(coming):
                x, y = across(tick), down(float(moment.future[place, index]))
                pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_shade(float(moment.level[place])))
        top = 22 + ROW * len(self.names)
        pen.text((left, top), "level", fill=INK)
        for tick, place in coming:
            x = across(tick)
            pen.rectangle([x - 4, top, x + 4, top + 12], fill=_shade(float(moment.level[place])), outline=FAINT)
        return np.asarray(image)

    def _share(self, value: float, index: int) -> float:
        return float(np.clip((value - self.low[index]) / (self.high[index] - self.low[index]), 0, 1))


def _shade(level: float) -> tuple[int, int, int]:
    """Ink for clean, paler with the noise."""
    return tuple(round(ink + level * (pale - ink)) for ink, pale in zip(INK, PALE, strict=True))
