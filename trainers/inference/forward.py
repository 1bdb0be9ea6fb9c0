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
        """`compiled`: see `is_compiled`."""
        self._network, self._config = network, config
        self._threads, self._use_gpu = threads, use_gpu
        self._batch_size = batch_size or (GPU_BATCH_SIZE if use_gpu else CPU_BATCH_SIZE)
        self._compiled: CompiledNetwork | None = None
        self._by_torch = None if compiled else self._place()

    @torch.inference_mode()
    def __call__(self, images_NSSC: Tensor) -> tuple[Tensor, ...]:
        """Return the network's float32 outputs, on the CPU.

        Args:
            images_NSSC: uint8 images; where the network is a suffix, float16 features `[N, ...]`.
        """
        parts = [self._compute(images_BSSC) for images_BSSC in images_NSSC.split(self._batch_size)]
        return tuple(torch.cat(of_output) for of_output in zip(*parts, strict=True))

    def _compute(self, images_BSSC: Tensor) -> tuple[Tensor, ...]:
        if self._by_torch is not None:
            return self._by_torch(images_BSSC)
        if self._compiled is None or not self._compiled.takes(images_BSSC):
            try:
                self._compiled = self._compile(images_BSSC)
            except Exception as error:  # any of a network that is traced, or of OpenVINO
                logger.info("OpenVINO can't compile this network, torch computes it: %s", error)
                self._by_torch = self._place()
                return self._by_torch(images_BSSC)
        return self._compiled(images_BSSC)

    def _compile(self, images_BSSC: Tensor) -> CompiledNetwork:
        start_computing(self._threads)
        settings = step_settings(self._config, torch.device("cpu"))
        return CompiledNetwork(self._network, settings, images_BSSC)

    def _place(self) -> Callable[[Tensor], tuple[Tensor, ...]]:
        network = fold_batchnorm(self._network)
        device, settings = prepare_inference(
            network, self._config, threads=self._threads, use_gpu=self._use_gpu
        )

        def compute(images_BSSC: Tensor) -> tuple[Tensor, ...]:
            outputs = forward(network, to_inputs(images_BSSC.to(device), settings), settings)
            return tuple(output.cpu() for output in outputs)

        return compute
