"""Robots behind `uwm.robot.interface.Robot`: simulated, replayed, LeRobot's, and the arms that speak their makers' protocols."""
