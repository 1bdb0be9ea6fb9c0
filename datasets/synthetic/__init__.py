"""Renders cars, their views and obstacles, for tests and the demo.

Imports NumPy and OpenCV, and nothing else of `datasets`.
Enter at `synthetic`; the `car_*` modules draw its parts.
"""
