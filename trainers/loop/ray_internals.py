"""Private names of Ray Train."""

import logging
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution import context


class Trainer(TorchTrainer):
    """Raises KeyboardInterrupt at Ctrl-C, once its workers have ended.

    Ray's own handler ends the process without a word, and stays when the training is over.
    """

    _controller: Any = None

    def fit(self) -> Result:
        try:
            return super().fit()
        except KeyboardInterrupt:
            if self._controller is not None:
                with suppress(RayActorError):  # it ends itself
                    ray.get(self._controller.abort.remote())
            raise

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller


def silence_reports() -> None:
    """Let this worker not log each of its reports, 2 kB in a file without an end."""
    context.logger.setLevel(logging.WARNING)
