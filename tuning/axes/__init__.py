"""The axes of a sweep's space: fields, their values or ranges, and when they apply.

Standard library and `trainers.config` only.
Enter at `axis.Axis`; `combine` puts axes in order, `backbones` has networks and their weights.
"""
