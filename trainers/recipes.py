"""RECIPES: name -> FinetuneConfig. A recipe is a value; the command line changes its fields."""

from dataclasses import replace

from datasets.config import IngestConfig
from trainers.config import (
    AUTO,
    FinetuneConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    ScheduleConfig,
)


def scratch() -> FinetuneConfig:
    """The lecture's ResNet50 from random weights.

    `python -m trainers scratch --data runs/cars`; one GPU or more; 8,144 images are too few for
    23.9 million parameters: expect far less than `transfer`, which is the lesson. (MobileNetV2 and
    the photographs of `transfer`, 10 epochs: 0.218 top-1.)
    Keras: ResNet50(weights=None, classes=196), Adam(lr=1e-3, clipnorm=1e-3, decay=1e-5), 50 epochs.
    """
    return FinetuneConfig(
        data="",
        epochs=50,
        model=ModelConfig(init="xavier"),  # Keras' default, Glorot uniform
        optim=OptimConfig(learning_rate=1e-3, clipnorm=1e-3, decay=1e-5),
    )


def pretrained() -> FinetuneConfig:
    """ImageNet weights, a new head and light augmentation, the start of the recipes below; all else
    is a default.

    Keras: ResNet50(weights='imagenet', include_top=False, pooling='avg') + Dense(softmax). The
    default augmentation (`cars`) costs accuracy in trainings as short as these
    (docs/performance.md, Recipes).
    """
    return FinetuneConfig(
        data="",
        ingest=IngestConfig(policy="light"),
        model=ModelConfig(init="imagenet", freeze_depth="all"),
    )


def transfer() -> FinetuneConfig:
    """The lecture's linear classifier on frozen ImageNet features.

    `python -m trainers transfer --data runs/cars`; a laptop will do, as only the head trains. Each
    image and its mirror image in turns, a high constant rate and an average of the weights: what
    won on held-out images of two networks (docs/performance.md, Recipes). MobileNetV2, 700
    photographs of 20 classes of Stanford Cars: 0.874 top-1 on the test split, 17 s an
    epoch on two CPU cores.
    """
    config = pretrained()
    return replace(
        config,
        ingest=IngestConfig(policy="flip"),
        optim=replace(config.optim, learning_rate=6e-3, ema_decay=0.99),
    )


def staged() -> FinetuneConfig:
    """The lecture's five steps: add a head, freeze the base, train the head, unfreeze some last
    layers, train both jointly.

    `python -m trainers staged --data runs/cars`; one GPU, or a laptop with patience. Any number of
    phases: `--phases FREEZE_DEPTH EPOCHS LEARNING_RATE ...`; Adam's moments of the head live on
    when the last two stages thaw. As `transfer`, with its network and photographs: 0.951 top-1.
    """
    return replace(
        pretrained(),
        model=ModelConfig(init="imagenet"),
        schedule=ScheduleConfig(phases=(("all", 4, 3e-3), (-2, 6, 1e-3)), schedule="cosine"),
    )


def finetune() -> FinetuneConfig:
    """Fine-tuning as practitioners do it today, all in one phase.

    `python -m trainers finetune --data runs/cars`; one GPU or more, bfloat16 on GPUs. AdamW with
    warm-up and cosine, an average of the weights, label smoothing, gradients clipped together; the
    stem and the first stages stay frozen. As `transfer`, with its network and photographs: 0.969
    top-1. What each setting gains, and why mixup and heavier augmentation are left out:
    docs/performance.md, Recipes.

    Layer decay, stochastic depth and warm-up follow the family. For transformers they are those of
    the end-to-end fine-tuning of masked autoencoders (He et al. 2022, table 9,
    https://arxiv.org/abs/2111.06377), as are weight decay (none of tokens, positions, biases and
    norms), label smoothing and cosine. That recipe trains for 50 to 100 epochs in batches of 1,024
    images, with mixup 0.8, CutMix 1.0 and the whole network. Not measured here.
    """
    return replace(
        pretrained(),
        model=ModelConfig(init="imagenet", freeze_depth=3, drop_path=AUTO),
        optim=OptimConfig(
            optimizer="adamw",
            learning_rate=1e-3,
            weight_decay=0.05,
            global_clipnorm=1.0,
            layer_decay=AUTO,
            ema_decay=0.99,
        ),
        loss=LossConfig(label_smoothing=0.1),
        schedule=ScheduleConfig(schedule="cosine", warmup_epochs=AUTO),
    )


RECIPES = {recipe.__name__: recipe() for recipe in (scratch, transfer, staged, finetune)}
"""Each still lacks its data: give `--data URI`."""
