"""Processes that don't compile don't import torch's compiler, and it can be imported later."""

import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import sys
import torch
from torch import distributed, nn
from trainers.loop import loop
from trainers.config import LossConfig
from trainers.networks.backbones import on_meta, require_size
from trainers.networks.measure import count_flops
from trainers.networks.torch_internals import keep_methods_as_they_are, without_compiler
from trainers.step import state
from trainers.step.mixing import build_mix

require_size("resnet50", 224)
count_flops(on_meta("resnet50", 10), 224)
mix = build_mix(LossConfig(mixup_alpha=0.1, cutmix_alpha=0.1), 3)
mix(torch.ones(2, 3, 8, 8), torch.tensor([0, 2]))
keep_methods_as_they_are()
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
with without_compiler():
    model = nn.parallel.DistributedDataParallel(nn.Linear(3, 3))
for kind in (torch.optim.SGD, torch.optim.AdamW):
    optimizer = kind(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        with without_compiler():
            optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]

with without_compiler():
    assert callable(torch._dynamo.optimize)  # no stand-in has it
compiled = torch.compile(model.module, backend="eager")
torch.testing.assert_close(compiled(torch.ones(1, 3)), model.module(torch.ones(1, 3)))
assert torch._dynamo.utils.counters["frames"]["ok"] == 1
from torchvision.ops import roi_align
distributed.destroy_process_group()
"""


def test_only_a_process_that_compiles_imports_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
