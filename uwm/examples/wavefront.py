"""AR-Diffusion (Sun et al. 2025): frames fall one behind the other; a finished one is read once, kept, and shown at once.

    call     f0@.4  f1@.7  f2@1         gap: calls between the beginnings of two frames, from all together to one after the other
"""

from dataclasses import replace

from uwm.core.patterns import Pattern
from uwm.core.streams import Stream
from uwm.examples import FRAMES, SMALL, apart, circles
from uwm.learn.fit import fit
from uwm.learn.stream_objective import StreamObjective
from uwm.nn.stream_model import StreamModelConfig, initialised
from uwm.sample.rollout import rollout

ROWS = 12


def main(steps: int = 400) -> dict[str, float]:
    """Calls per frame, and the distance to the real way behind two given frames, for three gaps."""
    film = Stream("film", "video", tuple(range(FRAMES)), 2, causal=True)
    model = initialised(StreamModelConfig((film,), "clean", backbone=replace(SMALL, registers=0)), seed=0)
    # Levels that never fall along the film: the only ones that a wavefront has.
    fit(model, circles(2000), StreamObjective((Pattern(video="fopp"),)), steps, batch=64)

    real, found = circles(64, seed=1), {}
    for gap in (2, 6, ROWS):
        frames = list(rollout(model, {"film": real[:, :2]}, FRAMES - 2, gap=gap, rows=ROWS, window=FRAMES, seeds=range(64)))
        last = frames[-1]
        found[f"gap {gap}, calls"] = float(last.calls)
        found[f"gap {gap}, apart"] = apart(last.values["film"][:, 0], real[:, -1])
        print(f"gap {gap}: {last.calls} calls for {len(frames)} frames, the last {found[f'gap {gap}, apart']:.3f} from the real way")
    return found


if __name__ == "__main__":
    main()
