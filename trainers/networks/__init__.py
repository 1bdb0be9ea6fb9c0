"""The networks: backbones, initial weights, freezing, and a network cut in two.

Imports torch, torchvision and `trainers.config`; no other part of `trainers`.
Enter at `backbones`: `build` makes a network; `zoo` prints the table of networks.
"""
