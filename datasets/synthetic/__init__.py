"""Renders cars, their views and obstacles, for tests and the demo.

Imports `datasets.config`, NumPy and OpenCV.
Enter at `synthetic`; the `car_*` modules draw its parts.
"""
