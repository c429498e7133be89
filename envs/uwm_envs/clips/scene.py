"""The table, its blocks and the arm as a MuJoCo scene: contacts with inertia and friction instead of what gives way at once.

```
Table (arm.py)    places --> blocks as discs on two slides, with friction; the arm as two hinges with position servos
                             the fingertip follows the action as far as servos and contacts let it
cameras.py        the same pinholes: colour, depth and segmentation come from MuJoCo's renderer
```

It has the interface of `arm.Table`, so that experts, grammar and recording are the same. Numbers may differ between machines in their
last digits, as MuJoCo's do; on one machine they repeat themselves.
"""

import math

import numpy as np

from uwm_envs.clips import arm
from uwm_envs.clips.arm import BASE, BLOCK, LINKS, TIP, Table
from uwm_envs.clips.cameras import ARM, CAMERAS, FAR, HEIGHT, LEVEL, LINK, PAINT
from uwm_envs.clips.grammar import COLOURS
from uwm_envs.simulator import load_mujoco

FRAME_S, STEP_S = 0.2, 0.004
REACHED = 0.8  # of a frame, after which the servos' target stands still


class Scene:
    """One world for any number of clips; `place` begins one. Owns a GL context: close it in the process that made it."""

    def __init__(self, side: int):
        self.mujoco = load_mujoco()
        self.model = self.mujoco.MjModel.from_xml_string(_xml())
        self.data = self.mujoco.MjData(self.model)
        self.touched = np.zeros(len(COLOURS), bool)
        self._blocks = [self.model.geom(colour).id for colour in COLOURS]
        self._finger = self.model.geom("finger").id
        self._label = np.zeros(self.model.ngeom + 1, np.uint8)  # the last one, -1: nothing there
        self._label[self._blocks] = np.arange(len(COLOURS)) + 1
        self._label[[self.model.geom(name).id for name in ("lower", "upper", "finger")]] = ARM
        self._renderer = self.mujoco.Renderer(self.model, side, side)

    def close(self) -> None:
        """Lets go of the GL context."""
        self._renderer.close()

    def place(self, table: Table) -> None:
        """Puts everything where it is on a table, at rest."""
        self.mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:2] = self.data.ctrl[:] = _hinges(table.tip)
        self.data.qpos[2:] = table.blocks.flatten()
        self.touched = np.zeros(len(COLOURS), bool)
        self.mujoco.mj_forward(self.model, self.data)

    @property
    def tip(self) -> np.ndarray:
        """Where the fingertip is (2,)."""
        return self.data.site("tip").xpos[:2].copy()

    @property
    def blocks(self) -> np.ndarray:
        """Where the blocks are (4, 2)."""
        return self.data.qpos[2:].reshape(-1, 2).copy()

    @property
    def proprio(self) -> np.ndarray:
        """Joint angles as sines and cosines, each against the x axis, and the fingertip: (6,)."""
        angles = np.cumsum(self.data.qpos[:2])
        return np.concatenate([np.sin(angles), np.cos(angles), self.tip])

    def move(self, action: np.ndarray) -> None:
        """One frame: the servos are led to where the action points. ValueError for an action that is not two finite numbers."""
        wanted = Table(self.tip, self.blocks)
        wanted.move(action)  # its limits, checks and reach
        begin, aim = self.data.ctrl.copy(), _hinges(wanted.tip)
        aim = begin + (aim - begin + math.pi) % (2 * math.pi) - math.pi  # the short way round
        self.touched = np.zeros(len(COLOURS), bool)
        steps = round(FRAME_S / STEP_S)
        for step in range(steps):
            self.data.ctrl[:] = begin + (aim - begin) * min((step + 1) / (REACHED * steps), 1.0)
            self.mujoco.mj_step(self.model, self.data)
            for pair in self.data.contact.geom[: self.data.ncon]:
                if self._finger in pair:
                    self.touched |= np.isin(self._blocks, pair)
        self.mujoco.mj_forward(self.model, self.data)

    def picture(self, view: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Frame (side, side, 3) uint8, depth (side, side) float32 in metres along the axis, and segmentation, as `cameras.picture`."""
        renderer = self._renderer
        renderer.update_scene(self.data, view)
        for flag in (self.mujoco.mjtRndFlag.mjRND_SHADOW, self.mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = False
        frame = renderer.render().copy()
        renderer.enable_depth_rendering()
        depth = renderer.render().copy()
        renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        geom = renderer.render()[..., 0].copy()
        renderer.disable_segmentation_rendering()
        return frame, np.where(geom < 0, FAR, depth).astype(np.float32), self._label[geom]


def _hinges(tip: np.ndarray) -> np.ndarray:
    """Angles of the two hinges (2,): the second against the first link."""
    lower, upper = arm.joints(tip)
    return np.array([lower, upper - lower])


def _xml() -> str:
    paint = [" ".join(f"{part / 255:.3f}" for part in colour) + " 1" for colour in PAINT]
    blocks = "".join(
        f'<body pos="0 0 {HEIGHT / 2}"><joint type="slide" axis="1 0 0" class="slide"/><joint type="slide" axis="0 1 0" class="slide"/>'
        f'<geom name="{colour}" type="cylinder" size="{BLOCK} {HEIGHT / 2}" mass="0.3" rgba="{paint[index + 1]}"/></body>'
        for index, colour in enumerate(COLOURS)
    )
    seen = "".join(
        f'<camera name="{name}" pos="{_numbers(camera.position)}" xyaxes="{_numbers(camera.rotation[0])} {_numbers(-camera.rotation[1])}" '
        f'fovy="{math.degrees(2 * math.atan(0.5 / camera.focal))}"/>'
        for name, camera in CAMERAS.items()
    )
    link = f'type="capsule" size="{LINK}" contype="0" conaffinity="0" mass="0.5" rgba="{paint[ARM]}"'
    return f"""
<mujoco>
  <option timestep="{STEP_S}" gravity="0 0 0" integrator="implicitfast"/>
  <visual>
    <map znear="0.05" zfar="{FAR}"/> <quality offsamples="0"/>
    <headlight ambient="0.6 0.6 0.6" diffuse="0.4 0.4 0.4" specular="0 0 0"/>
  </visual>
  <statistic extent="1"/>
  <default>
    <default class="slide">
      <joint limited="true" range="{BLOCK - 1} {1 - BLOCK}" damping="6" frictionloss="0.4"/>
    </default>
  </default>
  <worldbody>
    {seen}
    <geom name="table" type="box" size="1 1 0.001" pos="0 0 -0.001" contype="0" conaffinity="0" rgba="{paint[0]}"/>
    <body pos="{BASE[0]} {BASE[1]} {LEVEL}">
      <joint name="shoulder" axis="0 0 1" armature="0.2"/>
      <geom name="lower" {link} fromto="0 0 0 {LINKS[0]} 0 0"/>
      <body pos="{LINKS[0]} 0 0">
        <joint name="elbow" axis="0 0 1" armature="0.2"/>
        <geom name="upper" {link} fromto="0 0 0 {LINKS[1]} 0 0"/>
        <geom name="finger" type="capsule" size="{TIP}" fromto="{LINKS[1]} 0 {TIP - LEVEL} {LINKS[1]} 0 0" mass="0.1" rgba="{paint[ARM]}"/>
        <site name="tip" pos="{LINKS[1]} 0 0"/>
      </body>
    </body>
    {blocks}
  </worldbody>
  <actuator>
    <position joint="shoulder" kp="4000" kv="100"/>
    <position joint="elbow" kp="4000" kv="100"/>
  </actuator>
</mujoco>"""


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.9g}" for value in values)
