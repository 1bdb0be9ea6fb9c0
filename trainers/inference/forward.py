"""The forward pass of a network in eval mode over any number of images, in this process.

N images, B of a batch, S size in pixels.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainers.config import FinetuneConfig
from trainers.inference.actors import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from trainers.inference.compiled import CompiledNetwork
from trainers.networks.folding import fold_batchnorm
from trainers.step.settings import prepare_inference, start_computing, step_settings
from trainers.step.step import forward, to_inputs

logger = logging.getLogger(__name__)


class ForwardPass:
    """Computes batches on the device of this process: by OpenVINO, or by torch with BatchNorm
    folded."""

    def __init__(
        self,
        network: nn.Module,
        config: FinetuneConfig,
        *,
        threads: int,
        use_gpu: bool,
        compiled: bool,
        batch_size: int | None = None,
    ) -> None:
        """`compiled`: whether to try; see `is_compiled`."""
        self._batch_size = batch_size or (GPU_BATCH_SIZE if use_gpu else CPU_BATCH_SIZE)
        self.compiled = self._compile(network, config, threads) if compiled else None
        self._compute = self.compiled or _place(network, config, threads=threads, use_gpu=use_gpu)

    @torch.inference_mode()
    def __call__(self, images_NSSC: Tensor) -> tuple[Tensor, ...]:
        """Return the network's float32 outputs, on the CPU.

        Args:
            images_NSSC: uint8 images; where the network is a suffix, float16 features `[N, ...]`.
        """
        computed = map(self._compute, images_NSSC.split(self._batch_size))
        parts, before = [], next(computed)
        for outputs in computed:  # a GPU computes them while those before are copied
            parts.append([output.cpu() for output in before])
            before = outputs
        parts.append([output.cpu() for output in before])
        return tuple(torch.cat(of_output) for of_output in zip(*parts, strict=True))

    def _compile(
        self, network: nn.Module, config: FinetuneConfig, threads: int
    ) -> CompiledNetwork | None:
        start_computing(threads)
        settings, size_px = step_settings(config, torch.device("cpu")), config.ingest.size_px
        try:
            return CompiledNetwork(network, settings, (self._batch_size, size_px, size_px, 3))
        except Exception as error:  # any of a network that is traced, or of OpenVINO
            logger.info("OpenVINO can't compile this network, torch computes it: %s", error)
            return None


def _place(
    network: nn.Module, config: FinetuneConfig, *, threads: int, use_gpu: bool
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    folded = fold_batchnorm(network)
    device, settings = prepare_inference(folded, config, threads=threads, use_gpu=use_gpu)

    def compute(images_BSSC: Tensor) -> tuple[Tensor, ...]:
        return forward(folded, to_inputs(images_BSSC.to(device), settings), settings)

    return compute
