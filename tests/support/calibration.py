"""A calibration of a checkpoint of three classes, which no images gave."""

from trainers.run.calibration import Calibration

CALIBRATION = Calibration(
    temperature=2.0,
    fingerprint="0123abcd",
    num_images=40,
    ece_before=0.2,
    ece_after=0.01,
    loss_before=1.0,
    loss_after=0.5,
    known_scores=tuple(float(number) for number in range(40)),
    label_distances=tuple(number / 40 for number in range(40)),
)
