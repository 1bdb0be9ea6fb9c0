"""The step: pixels as a reference has them, a batch that overfits, sums that count."""

from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from datasets.plan import IGNORE_INDEX
from tests.support.small import with_head
from trainers.config import NORMALIZATIONS, ComputeConfig, LossConfig, OptimConfig
from trainers.metrics import (
    GRAD_NORM,
    PEAK_NORM,
    TRAIN_SUMS,
    Sums,
    stage_metrics,
)
from trainers.networks.backbones import build
from trainers.networks.freezing import train_mode
from trainers.run.predictions import COLUMNS
from trainers.step import step
from trainers.step.mixing import build_mix, smooth_targets
from trainers.step.optim import build_optimizer
from trainers.step.state import WeightAverage, place_model
from trainers.step.step import StepSettings, eval_step, normalize, train_step

pytestmark = pytest.mark.usefixtures("toy_backbone")
MEAN, STD = NORMALIZATIONS["imagenet"]


def settings_of(optim: OptimConfig, **values: object) -> StepSettings:
    return StepSettings(mean=MEAN, std=STD, optim=optim, **values)  # pyright: ignore


def random_batch(num_images: int, size_px: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (num_images, size_px, size_px, 3)
    images_BHWC = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images_BHWC, torch.arange(num_images, dtype=torch.int32)


def sgd(model: nn.Module, learning_rate: float = 0.1) -> Optimizer:
    config = OptimConfig(optimizer="sgd", learning_rate=learning_rate)
    return build_optimizer(model, "toy", config)


class Constant(nn.Module):
    """Gives the same logits_BK whatever it sees."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits_BK = nn.Parameter(torch.tensor(logits))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.logits_BK * 1


def test_normalization_equals_a_reference_made_by_hand():
    images_BHWC = torch.tensor([[[[0, 255, 51], [255, 0, 102]]]], dtype=torch.uint8)
    images_BCHW = normalize(images_BHWC, (0.5, 0.25, 0.2), (0.5, 0.25, 0.1))
    expected = torch.tensor([[[[-1.0, 1.0]], [[3.0, -1.0]], [[0.0, 2.0]]]])
    torch.testing.assert_close(images_BCHW, expected)
    assert images_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert images_BHWC[0, 0, 0].tolist() == [0, 255, 51]


def test_a_network_is_placed_as_torch_places_it_with_a_tensor_of_rank_5_as_well():
    def build_small() -> nn.Sequential:
        depthwise = nn.Conv2d(8, 8, 3, groups=8)
        return nn.Sequential(nn.Conv2d(3, 8, 3), depthwise, nn.Conv2d(8, 4, 1))

    placed, expected = build_small(), build_small()
    placed[0].register_buffer("mask", torch.zeros(1, 2, 3, 4, 5))
    place_model(placed, ComputeConfig(precision="fp32"), torch.device("cpu"))
    expected.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    strides = [weight.stride() for weight in placed.parameters()]
    assert strides == [weight.stride() for weight in expected.parameters()]
    assert strides[2] == (9, 1, 3, 1), "a depthwise weight, whose contiguous strides fit as well"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_one_batch_overfits(dtype: torch.dtype | None):
    torch.manual_seed(0)
    stem = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(),
    )  # fmt: skip
    model = with_head(nn.Linear(256, 8), stem)
    optim = OptimConfig(learning_rate=1e-2, clipnorm=1.0)
    settings = settings_of(optim, autocast_dtype=dtype)
    optimizer = build_optimizer(model, "toy", optim)
    images_BHWC, labels_B = random_batch(8)
    for _ in range(30):
        sums = train_step(model.train(), optimizer, images_BHWC, labels_B, settings=settings)
    assert sums["loss_sum"].item() / 8 < 0.05
    assert sums["top1_sum"].item() == 8


def test_a_batch_overfits_a_whole_backbone():
    torch.manual_seed(0)
    model = build("mobilenet_v2", 4)
    nn.init.zeros_(model.get_parameter("classifier.1.weight"))
    train_mode(model, "mobilenet_v2", 0)
    optim = OptimConfig(learning_rate=3e-3)
    optimizer = build_optimizer(model, "mobilenet_v2", optim)
    images_BHWC, labels_B = random_batch(4)
    losses = [
        train_step(model, optimizer, images_BHWC, labels_B, settings=settings_of(optim))["loss_sum"]
        for _ in range(12)
    ]
    assert losses[0].item() / 4 == pytest.approx(log(4), abs=1e-4)
    assert losses[-1].item() / 4 < 0.2


def test_a_training_step_sums_over_its_images_before_the_update():
    head = Constant([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    model = with_head(head)
    optim = OptimConfig(optimizer="sgd", learning_rate=1.0, global_clipnorm=1e-3)
    images_BHWC, _ = random_batch(2)
    sums = train_step(
        model, build_optimizer(model, "toy", optim), images_BHWC, torch.tensor([0, 1]),
        settings=settings_of(optim),
    )  # fmt: skip
    assert set(sums) == {*TRAIN_SUMS, PEAK_NORM}
    assert 0 < sums[PEAK_NORM] <= sums[GRAD_NORM]
    e = torch.e
    expected = log(1 + 2 / e**2) + log(2 + e)
    assert sums["loss_sum"].item() == pytest.approx(expected, rel=1e-6)
    assert (sums["top1_sum"].item(), sums["count"].item()) == (1, 2)
    assert sums["clip/clipped_share"].item() == 1
    moved = head.logits_BK.detach() - torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert not any(value.requires_grad for value in sums.values())


def test_lost_images_count_nowhere():
    images_BHWC, labels_B = random_batch(8)
    partly_B = labels_B.clone()
    partly_B[5:] = IGNORE_INDEX
    models = [with_head(nn.Linear(3 * 32 * 32, 8), nn.Flatten()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optim = OptimConfig(optimizer="sgd", learning_rate=0.1)
    settings = settings_of(optim, label_smoothing=0.1, images_per_rank=8)
    whole, partly = (
        train_step(model, sgd(model), *batch, settings=settings)
        for model, batch in zip(
            models, [(images_BHWC[:5], labels_B[:5]), (images_BHWC, partly_B)], strict=True
        )
    )

    assert (partly["count"], partly["lost"]) == (5, 3)
    assert partly["loss_sum"] == pytest.approx(whole["loss_sum"].item(), rel=1e-5)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_that_is_lost_whole_changes_nothing():
    images_BHWC, labels_B = random_batch(4)
    model = with_head(nn.Linear(3 * 32 * 32, 3), nn.Flatten())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    sums = train_step(
        model,
        sgd(model),
        images_BHWC,
        torch.full_like(labels_B, IGNORE_INDEX),
        settings=settings_of(OptimConfig(optimizer="sgd")),
    )

    assert (sums["count"], sums["lost"], sums["loss_sum"]) == (0, 4, 0)
    for one, other in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach())


def test_label_smoothing_counts_in_training_and_not_in_evaluation():
    optim = OptimConfig(optimizer="sgd", learning_rate=1e-9)
    settings = settings_of(optim, label_smoothing=0.3)
    model = with_head(Constant([[1.0, 0.0, 0.0]]))
    images_BHWC, labels_B = random_batch(1)
    log_z = log(torch.e + 2)
    evaluated = eval_step(model, images_BHWC, labels_B, settings=settings)
    trained = train_step(
        model, build_optimizer(model, "toy", optim), images_BHWC, labels_B, settings=settings
    )
    assert evaluated[COLUMNS.index("loss"), 0].item() == pytest.approx(log_z - 1, rel=1e-6)
    assert trained["loss_sum"].item() == pytest.approx(log_z - 0.8, rel=1e-6)


def test_evaluation_counts_top1_and_top5():
    falling = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    model = Constant([falling] * 4)
    images_BHWC, _ = random_batch(4)
    labels_B = torch.tensor([0, 4, 5, 6])
    columns_5B = eval_step(model.eval(), images_BHWC, labels_B, settings=settings_of(OptimConfig()))
    columns = dict(zip(COLUMNS, columns_5B.tolist(), strict=True))
    log_probabilities = torch.tensor(falling).log_softmax(0)
    assert columns["label"] == [0, 4, 5, 6] and columns["predicted"] == [0, 0, 0, 0]
    assert columns["confidence"] == pytest.approx([log_probabilities[0].exp().item()] * 4)
    assert columns["top5"] == [1, 1, 0, 0]
    assert columns["loss"] == pytest.approx((-log_probabilities[labels_B]).tolist())
    assert not columns_5B.requires_grad


def test_top5_of_three_classes_is_everything():
    model = Constant([[0.0, 1.0, 2.0]])
    images_BHWC, labels_B = random_batch(1)
    columns_5B = eval_step(model.eval(), images_BHWC, labels_B, settings=settings_of(OptimConfig()))
    columns = dict(zip(COLUMNS, columns_5B.tolist(), strict=True))
    assert (columns["label"], columns["predicted"], columns["top5"]) == (
        [labels_B.item()],
        [2],
        [1],
    )


def test_evaluation_changes_nothing():
    model = build("mobilenet_v2", 4).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images_BHWC, labels_B = random_batch(4)
    eval_step(model, images_BHWC, labels_B, settings=settings_of(OptimConfig()))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_step_on_a_gpu_waits_for_nothing():
    model = build("mobilenet_v2", 4).cuda()
    optim = OptimConfig(clipnorm=1.0)
    settings = settings_of(
        optim,
        autocast_dtype=torch.bfloat16,
        accumulation_steps=2,
        class_weights_K=torch.ones(4).cuda(),
        mix=build_mix(LossConfig(mixup_alpha=1.0, cutmix_alpha=1.0), num_classes=4),
    )
    optimizer = build_optimizer(model, "mobilenet_v2", optim)
    average = WeightAverage(model, 0.9)
    parts = {"clip/stages": stage_metrics([f"stage {number}" for number in range(8)])}
    sums = Sums(TRAIN_SUMS, "cuda", parts=parts)
    images_BHWC, labels_B = (tensor.cuda() for tensor in random_batch(4))

    def step() -> None:
        sums.add(train_step(model, optimizer, images_BHWC, labels_B, settings=settings))
        average.update(model)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        eval_step(model, images_BHWC, labels_B, settings=settings)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_parts_of_a_batch_add_up_to_its_gradient():
    images_BHWC, labels_B = random_batch(8)
    labels_B[6] = IGNORE_INDEX
    models = [with_head(nn.Linear(3 * 32 * 32, 8), nn.Flatten()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optim = OptimConfig(optimizer="sgd", learning_rate=0.1)
    told = [
        train_step(
            model, sgd(model), images_BHWC, labels_B,
            settings=settings_of(optim, accumulation_steps=parts),
        )
        for model, parts in zip(models, (1, 3), strict=True)
    ]  # fmt: skip
    for name in told[0]:
        torch.testing.assert_close(told[0][name], told[1][name])
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("num_images", "steps", "sizes"),
    [
        (10, 4, [3, 3, 2, 2]),
        (8, 4, [2, 2, 2, 2]),
        (6, 4, [2, 2, 2]),
        (16, 3, [6, 5, 5]),
        (2, 4, [1, 1]),
    ],
)
def test_parts_of_a_batch_have_equal_sizes(num_images: int, steps: int, sizes: list[int]) -> None:
    """BatchNorm of one image is noise, and fails where its map is one pixel."""
    seen: list[int] = []
    model = with_head(nn.Linear(3 * 32 * 32, 16), nn.Flatten())
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    settings = settings_of(OptimConfig(), accumulation_steps=steps)
    train_step(model, sgd(model), *random_batch(num_images), settings=settings)
    assert seen == sizes


def test_class_weights_weigh_the_losses_of_their_images():
    model = with_head(Constant([[0.0, 0.0], [0.0, 0.0]]))
    images_BHWC, labels_B = random_batch(2)
    weights_K = torch.tensor([0.5, 3.0])
    settings = settings_of(OptimConfig(optimizer="sgd"), class_weights_K=weights_K)
    sums = train_step(model, sgd(model), images_BHWC, labels_B, settings=settings)
    assert sums["loss_sum"].item() == pytest.approx(3.5 * log(2))


@pytest.mark.parametrize("mixes", [False, True])
def test_smooth_labels_of_a_rare_class_do_not_outweigh_the_labels(mixes: bool):
    """19 classes of images that a linear network tells apart, and one with a weight of 475."""
    num_classes = 20
    labels_B = torch.arange(100) % (num_classes - 1)
    labels_B[0] = num_classes - 1
    inputs_BK = F.one_hot(labels_B, num_classes).float()
    weights_K = torch.tensor([0.95] * 19 + [475.0])
    settings = settings_of(
        OptimConfig(), class_weights_K=weights_K, label_smoothing=0.1, images_per_rank=100
    )
    targets = smooth_targets(labels_B, num_classes, 0.1) if mixes else labels_B
    head = nn.Linear(num_classes, num_classes)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = step._cross_entropy_sum(head(inputs_BK), targets, settings) / 100
        loss.backward()
        optimizer.step()
    assert (head(inputs_BK).argmax(dim=1) == labels_B).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighed_targets_of_labels_have_the_loss_of_the_labels(smoothing: float):
    logits_BK, labels_B = torch.randn(6, 4), torch.tensor([0, 3, -1, 1, 2, 3])
    weights_K = torch.tensor([0.5, 3.0, 1.0, 40.0])
    settings = settings_of(OptimConfig(), class_weights_K=weights_K, label_smoothing=smoothing)
    by_label = step._cross_entropy_sum(logits_BK, labels_B, settings)
    targets_BK = smooth_targets(labels_B, 4, smoothing)
    torch.testing.assert_close(step._cross_entropy_sum(logits_BK, targets_BK, settings), by_label)
    known = labels_B >= 0
    losses_B = F.cross_entropy(
        logits_BK[known], labels_B[known], label_smoothing=smoothing, reduction="none"
    )
    torch.testing.assert_close(by_label, (losses_B * weights_K[labels_B[known]]).sum())


class TwoHeads(nn.Module):
    """Like InceptionV3: a second head in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, images_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        features_BC = images_BCHW.mean(dim=(2, 3))
        main_BK = self.main(features_BC)
        return (main_BK, self.aux(features_BC)) if self.training else main_BK


def test_an_auxiliary_head_learns_with_its_weight_and_is_not_told():
    head = TwoHeads()
    for layer in (head.main, head.aux):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    model = with_head(head)
    images_BHWC, labels_B = random_batch(2)
    settings = settings_of(OptimConfig(optimizer="sgd"))
    sums = train_step(model.train(), sgd(model), images_BHWC, labels_B, settings=settings)
    assert sums["loss_sum"].item() == pytest.approx(2 * log(2))
    assert head.main.weight.norm() > 0
    torch.testing.assert_close(head.aux.weight, 0.4 * head.main.weight)


def test_float16_scales_the_loss_and_skips_a_step_that_overflows():
    model = with_head(nn.Linear(3 * 32 * 32, 8), nn.Flatten())
    images_BHWC, labels_B = random_batch(8)
    optim = OptimConfig(optimizer="sgd", learning_rate=1e-3, clipnorm=1.0)
    settings = settings_of(optim, autocast_dtype=torch.float16)
    before = model.state_dict()["fc.weight"].clone()
    scaler = GradScaler("cpu", init_scale=2.0**40)  # overflows, and halves
    optimizer = sgd(model)
    sums = train_step(model, optimizer, images_BHWC, labels_B, settings=settings, scaler=scaler)
    assert torch.equal(model.state_dict()["fc.weight"], before)
    assert sums["finite"] and sums["clip/grad_norm"].isfinite()
    for _ in range(40):
        sums = train_step(model, optimizer, images_BHWC, labels_B, settings=settings, scaler=scaler)
    assert scaler.get_scale() < 2.0**40 and not torch.equal(model.state_dict()["fc.weight"], before)


def test_a_gradient_that_is_not_finite_is_reported():
    model = with_head(nn.Linear(3 * 32 * 32, 8), nn.Flatten())
    images_BHWC, labels_B = random_batch(8)
    settings = settings_of(OptimConfig(optimizer="sgd"))
    steps = [train_step(model, sgd(model, 1e38), images_BHWC, labels_B, settings=settings)]
    steps.append(train_step(model, sgd(model), images_BHWC, labels_B, settings=settings))
    assert [bool(sums["finite"]) for sums in steps] == [True, False]


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
def test_a_blend_shares_pixels_and_targets_alike(alphas: dict[str, float]):
    mix = build_mix(LossConfig(**alphas, label_smoothing=0.1), num_classes=4)
    assert mix is not None
    images_BCHW = torch.eye(4)[:, :, None, None].expand(4, 4, 32, 32).clone()
    torch.manual_seed(0)
    mixed_BCHW, targets_BK = mix(images_BCHW, torch.arange(4))
    smooth_BK = mixed_BCHW.mean(dim=(2, 3)) * 0.9 + 0.1 / 4  # a channel per class
    torch.testing.assert_close(targets_BK, smooth_BK)
    assert not torch.equal(targets_BK, targets_BK.round())
    torch.manual_seed(0)
    assert torch.equal(mix(images_BCHW, torch.arange(4))[1], targets_BK)


def test_a_lost_image_lends_a_blend_no_target():
    mix = build_mix(LossConfig(mixup_alpha=1.0, cutmix_alpha=1.0), num_classes=4)
    assert mix is not None
    _, targets_BK = mix(torch.zeros(4, 3, 8, 8), torch.tensor([0, IGNORE_INDEX, 2, 3]))
    assert targets_BK.sum().item() == pytest.approx(3)
    assert not targets_BK[:, 1].any()


def test_without_alphas_nothing_is_blended():
    assert build_mix(LossConfig(), num_classes=4) is None
