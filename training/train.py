# SPDX-License-Identifier: Apache-2.0
"""Train a network: Adam, one-cycle learning rate, exponential moving average, bf16 where the CPU multiplies it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import nn

from appliance.inference.openvino import has_native_bf16

Net = TypeVar("Net", bound=nn.Module)

EMA = 0.999


def train(
    make: Callable[[], Net],
    error_of: Callable[[Net, torch.Generator], torch.Tensor],
    steps: int,
    learning_rate: float,
    seed: int,
    threads: int = 1,
) -> Net:
    """Return the moving average of the network that `make` gives, after `steps` steps down `error_of(net, rng)`, which
    draws its own batch.

    Seeds, steps and threads fixed: the same machine and library versions give the same weights.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    net = make().to(memory_format=torch.channels_last)  # 1.4 times as fast as the default here
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA))
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.05)
    rng = torch.Generator().manual_seed(seed)
    start, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_native_bf16()):
            error = error_of(net, rng)
        optimiser.zero_grad()
        error.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(net)
        total += error.item()
        if step % 500 == 0:
            print(f"step {step} of {steps}: error {total / 500:.4f}, {time.monotonic() - start:.0f} s", flush=True)
            total = 0.0
    return cast(Net, average.module.float().eval())
