"""RECIPES: name -> FinetuneConfig. A recipe is a value; the command line changes its fields."""

from dataclasses import replace

from trainers.config import FinetuneConfig, LossConfig, ModelConfig, OptimConfig, ScheduleConfig


def scratch() -> FinetuneConfig:
    """The lecture's ResNet50 from random weights.

    `python -m trainers scratch --data runs/cars`; one GPU or more; 8,144 images are too few for
    23.9 million parameters: expect far less than `transfer`, which is the lesson.
    Keras: ResNet50(weights=None, classes=196), Adam(lr=1e-3, clipnorm=1e-3, decay=1e-5), 50 epochs.
    """
    return FinetuneConfig(
        data="",
        epochs=50,
        model=ModelConfig(init="xavier"),  # Keras' default, Glorot uniform
        optim=OptimConfig(learning_rate=1e-3, clipnorm=1e-3, decay=1e-5),
    )


def transfer() -> FinetuneConfig:
    """A linear classifier on frozen ImageNet features.

    `python -m trainers transfer --data runs/cars`; a laptop will do, as only the head trains.
    Keras: ResNet50(weights='imagenet', include_top=False, pooling='avg') + Dense(softmax).
    """
    return FinetuneConfig(
        data="",
        epochs=10,
        model=ModelConfig(init="imagenet", freeze_depth="all"),
        optim=OptimConfig(learning_rate=1e-3),
    )


def finetune() -> FinetuneConfig:
    """The network thawed from its middle on, as practitioners do it today.

    `python -m trainers finetune --data runs/cars`; one GPU or more. AdamW, warm-up and cosine,
    label smoothing, gradients clipped together; the stem and the first two stages stay frozen.
    """
    return replace(
        transfer(),
        model=ModelConfig(init="imagenet", freeze_depth=3),
        optim=OptimConfig(
            optimizer="adamw", learning_rate=3e-4, weight_decay=0.05, global_clipnorm=1.0
        ),
        schedule=ScheduleConfig(schedule="cosine", warmup_epochs=1),
        loss=LossConfig(label_smoothing=0.1),
    )


RECIPES = {recipe.__name__: recipe() for recipe in (scratch, transfer, finetune)}
"""Each still lacks its data: give `--data URI`."""
