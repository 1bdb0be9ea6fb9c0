"""The lecture's networks that neither torchvision nor timm has: LeNet-5 and NASNetMobile."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD_TYPE = "same"
"""timm's name of TensorFlow's padding."""


class LeNet5(nn.Module):
    """Two convolutions and three dense layers, tanh between them (LeCun et al., 1998).

    The original takes one channel of 32x32 pixels; this one takes RGB of 32x32 or more, pooled to
    the 5x5 maps of 32 pixels. Its second convolution has all connections, and its output is linear
    where the original compares with drawn digits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, kernel_size=5)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.dense1 = nn.Linear(16 * 5 * 5, 120)
        self.dense2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        maps_BCHW = F.avg_pool2d(torch.tanh(self.conv1(images_BCHW)), 2)
        maps_BCHW = F.avg_pool2d(torch.tanh(self.conv2(maps_BCHW)), 2)
        features_BD = F.adaptive_avg_pool2d(maps_BCHW, 5).flatten(1)
        features_BD = torch.tanh(self.dense1(features_BD))
        features_BD = torch.tanh(self.dense2(features_BD))
        return self.head(features_BD)


class NASNetMobile(nn.Module):
    """NASNet-A (4 @ 1056): three groups of four normal cells, a reduction cell between two of them
    (Zoph et al., 2018), of the cells of timm's NASNetLarge.

    Keras' definition, with its 5,326,716 parameters and BatchNorm statistics for 1000 classes. A
    cell takes the outputs of the two before it; in NASNetLarge, the first one behind a reduction
    takes an older output. Pooling leaves the padding out, where Keras pads with zeros.
    """

    def __init__(self, num_classes: int) -> None:
        # timm takes a second, which other networks don't pay.
        from timm.layers.conv_bn_act import ConvNormAct
        from timm.models.nasnet import CellStem0, CellStem1, ReductionCell0

        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-3)
        self.conv0 = ConvNormAct(3, 32, 3, stride=2, padding=0, norm_layer=norm, apply_act=False)
        self.cell_stem_0 = CellStem0(32, 11, PAD_TYPE)
        self.cell_stem_1 = CellStem1(32, 22, PAD_TYPE)
        self.cells1 = _build_cells(44, 88, width=44)
        self.reduction1 = ReductionCell0(264, 88, 264, 88, PAD_TYPE)
        self.cells2 = _build_cells(264, 352, width=88)
        self.reduction2 = ReductionCell0(528, 176, 528, 176, PAD_TYPE)
        self.cells3 = _build_cells(528, 704, width=176)
        self.act = nn.ReLU()
        self.head = nn.Linear(1056, num_classes)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        stem_BCHW = self.conv0(images_BCHW)
        before_BCHW = self.cell_stem_0(stem_BCHW)
        maps_BCHW = self.cell_stem_1(stem_BCHW, before_BCHW)
        cells = (*self.cells1, self.reduction1, *self.cells2, self.reduction2, *self.cells3)
        for cell in cells:
            before_BCHW, maps_BCHW = maps_BCHW, cell(maps_BCHW, before_BCHW)
        return self.head(self.act(maps_BCHW).mean((2, 3)))


def _build_cells(channels_before: int, channels: int, *, width: int) -> nn.ModuleList:
    """Build four normal cells; the maps before the first one's input are twice as high and wide.

    Args:
        channels_before: of those maps.
        channels: of the input.
        width: channels of each of the six outputs that a cell concatenates.
    """
    from timm.models.nasnet import FirstCell, NormalCell

    first = FirstCell(channels_before, width // 2, channels, width, PAD_TYPE)
    second = NormalCell(channels, width, 6 * width, width, PAD_TYPE)
    others = (NormalCell(6 * width, width, 6 * width, width, PAD_TYPE) for _ in range(2))
    return nn.ModuleList([first, second, *others])
