"""Scripted experts for the robosuite tasks; `motion.py` is what they share, one file per task besides."""
