"""Becomes a franka-sim server: limits and communication enforced, on a model without meshes made from the URDF in its own wheel.

Arguments: a folder for the model, then options for the server. Serves until it is told to end.
"""

import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import franka_sim
import mujoco

model = Path(sys.argv[1]) / "fr3.xml"
robot = ElementTree.parse(Path(franka_sim.__file__).parent / "models" / "fr3.urdf").getroot()
for link in robot.iter("link"):
    for drawn in [*link.findall("visual"), *link.findall("collision")]:
        link.remove(drawn)
mujoco.mj_saveLastXML(str(model), mujoco.MjModel.from_xml_string(ElementTree.tostring(robot, encoding="unicode")))
compiled = ElementTree.parse(model)
for joint in compiled.iter("joint"):  # a URDF does not tell of the motors' own inertia; without it the last joint's servo oscillates
    joint.set("armature", "0.2")
    joint.set("damping", "1")
compiled.write(model)
os.environ["FR3_MJCF"] = str(model)
arguments = ["-m", "franka_sim.run_server", "--enforce-comm-constraints", "--enforce-motion-limits", *sys.argv[2:]]
os.execv(sys.executable, [sys.executable, *arguments])
