"""Optimizers and schedules: parameter groups, layer-wise rates (LARC, LARS), and rates as pure functions of the step.

LARC is NVIDIA apex's form that SwAV used (You et al. 2017, arXiv 1708.03888, with the decay inside the local rate);
LARS is SimCLR's and BYOL's. Both are SGD with momentum on gradients that were scaled parameter by parameter.
Departs: in a warm-up of W steps, step s has s / W of the rise, and step W has the full rate. The released code of SwAV
and DINO uses s / (W - 1), so step W - 1 has the full rate already: a difference of one step in thousands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from selfcluster.types import Group, Progress, Training

OPTIMIZERS = ("sgd", "adamw", "larc", "lars")
SCHEDULES = ("cosine", "constant", "step", "multistep")


def learning_rate_at(training: Training, progress: Progress) -> float:
    """Return the learning rate of a step: linear warm-up, then the schedule over the rest of the run.

    cosine: from `learning_rate` to `final_learning_rate`; step: times `drop` every `milestones[0]` epochs; multistep:
    times `drop` at each milestone; constant: no change. `training` holds the rates for this run's batch size.
    """
    warmup = min(training.warmup_epochs * progress.steps_per_epoch, progress.total_steps)
    if progress.step < warmup:
        start = training.warmup_learning_rate
        return start + (training.learning_rate - start) * progress.step / warmup
    if training.schedule == "constant":
        return training.learning_rate
    if training.schedule == "step":
        return training.learning_rate * training.drop ** int(progress.epochs // training.milestones[0])
    if training.schedule == "multistep":
        return training.learning_rate * training.drop ** sum(progress.epochs >= m for m in training.milestones)
    done = (progress.step - warmup) / max(1.0, progress.total_steps - warmup)
    low = training.final_learning_rate
    return low + (training.learning_rate - low) * (1 + cos(pi * done)) / 2


def weight_decay_at(training: Training, progress: Progress) -> float:
    """Return the weight decay of a step: constant, or along a cosine to `final_weight_decay` if that is set."""
    if training.final_weight_decay is None:
        return training.weight_decay
    low, high = training.weight_decay, training.final_weight_decay
    return high + (low - high) * (1 + cos(pi * progress.fraction)) / 2


class LARC(torch.optim.Optimizer):
    """SGD with momentum whose gradients are scaled by `trust` * norm of the weights / norm of the gradient.

    Args:
        params: parameters or groups; a group with `layerwise_adaptation=False` is plain SGD.
        lr, momentum, weight_decay: as in SGD.
        trust: the coefficient eta. 0.001 in the papers here; 0.02 in solo-learn's CIFAR settings.
        lars: LARS divides by the norm of (gradient plus decay), and applies the decay to every parameter. LARC divides
            by the sum of the two norms, and uses the plain gradient if the parameter or its gradient is zero.
        clip_rate: divide a layer's scale by `lr` and limit it to 1, so that the local rate can only lower the rate
        (apex
            LARC's `clip`, solo-learn's `clip_lr`).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        lars: bool = False,
        clip_rate: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "layerwise_adaptation": True}
        super().__init__(params, defaults)
        self.trust, self.lars, self.clip_rate = trust, lars, clip_rate

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            decay, rate, momentum = group["weight_decay"], group["lr"], group["momentum"]
            updates = [p.grad for p in params]
            if group["layerwise_adaptation"]:
                updates = self._adapted(params, updates, decay, rate)
            elif decay:
                updates = torch._foreach_add(updates, params, alpha=decay)
            if momentum:
                for p in params:
                    if "momentum_buffer" not in self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffers = [self.state[p]["momentum_buffer"] for p in params]
                torch._foreach_mul_(buffers, momentum)
                torch._foreach_add_(buffers, updates)
                updates = buffers
            torch._foreach_add_(params, updates, alpha=-rate)

    def _adapted(self, params: list[Tensor], grads: list[Tensor], decay: float, rate: float) -> list[Tensor]:
        weights = torch.stack(torch._foreach_norm(params))
        decayed = torch._foreach_add(grads, params, alpha=decay)
        if self.lars:
            norms = torch.stack(torch._foreach_norm(decayed))
            ratio = torch.where((weights > 0) & (norms > 0), self.trust * weights / norms, 1.0)
        else:
            slopes = torch.stack(torch._foreach_norm(grads))
            both = (weights > 0) & (slopes > 0)
            ratio = torch.where(both, self.trust * weights / (slopes + decay * weights + 1e-8), 1.0)
            if decay:  # apex uses the plain gradient of such a parameter
                keep = torch.where(both, decay, 0.0).unbind()
                decayed = torch._foreach_add(grads, torch._foreach_mul(params, list(keep)))
        if self.clip_rate and rate > 0:
            ratio = (ratio / rate).clamp(max=1.0)
        return list(torch._foreach_mul(decayed, list(ratio.unbind())))


def make_optimizer(
    groups: Sequence[Group], training: Training, factors: Mapping[Tensor, float] | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer that `training` names, for a method's groups. A group's own values override the run's.

    `factors`: factor of the learning rate for each parameter; 1 if a parameter has no entry.
    """
    described = []
    for group, factor, params in _by_factor(groups, factors or {}, training.exclude_flat):
        decay = training.weight_decay if group.weight_decay is None else group.weight_decay
        entry: dict[str, Any] = {"params": params, "weight_decay": decay, "rate_factor": factor}
        # the run's weight decay schedule applies to groups without a value of their own
        entry["scheduled_decay"] = group.weight_decay is None
        if training.optimizer in ("larc", "lars"):
            entry["layerwise_adaptation"] = group.layerwise_adaptation
        if training.optimizer != "adamw":
            entry["momentum"] = training.momentum if group.momentum is None else group.momentum
        described.append(entry)
    layerwise: dict[str, Any] = {"trust": training.trust_coefficient, "clip_rate": training.clip_rate}
    make: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(described, lr=training.learning_rate),
        "adamw": lambda: torch.optim.AdamW(described, lr=training.learning_rate),
        "larc": lambda: LARC(described, lr=training.learning_rate, **layerwise),
        "lars": lambda: LARC(described, lr=training.learning_rate, lars=True, **layerwise),
    }
    return make[training.optimizer]()


def _by_factor(
    groups: Sequence[Group], factors: Mapping[Tensor, float], exclude_flat: bool
) -> Iterator[tuple[Group, float, list[nn.Parameter]]]:
    """Yield the groups, each split by learning rate factor, and into flat and other parameters."""
    for group in groups:
        parts: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in group.params:
            flat = exclude_flat and parameter.ndim < 2
            parts.setdefault((factors.get(parameter, 1.0), flat), []).append(parameter)
        for (factor, flat), params in parts.items():
            yield replace(group, weight_decay=0.0, layerwise_adaptation=False) if flat else group, factor, params


def set_rates(optimizer: torch.optim.Optimizer, learning_rate: float, weight_decay: float) -> None:
    """Set every group's learning rate for a step, times its factor, and the decay of groups without their own decay."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate_factor"]
        if group["scheduled_decay"]:
            group["weight_decay"] = weight_decay


def clip(gradients: list[Tensor], norm: Tensor, training: Training) -> None:
    """Scale gradients down to the run's limits: `clip` for the total norm, `clip_each` for each parameter's norm."""
    if training.clip is not None:
        torch._foreach_mul_(gradients, (training.clip / (norm + 1e-6)).clamp(max=1.0))
    if training.clip_each is not None:
        for gradient, length in zip(gradients, torch._foreach_norm(gradients), strict=True):
            gradient.mul_((training.clip_each / (length + 1e-6)).clamp(max=1.0))


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's state by parameter name, such as `weight.momentum_buffer`, so that no order matters."""
    return {
        f"{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Restore the state from `optimizer_tensors`. A parameter without tensors has made no step yet."""
    for name, parameter in module.named_parameters():
        own = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.rpartition(".")[0] == name}
        if own:
            # AdamW keeps its step counter on the CPU in float32; moments are on the parameter's device, in its layout
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else torch.empty_like(parameter).copy_(value)
                for key, value in own.items()
            }


def forget(optimizer: torch.optim.Optimizer, module: nn.Module, names: Sequence[str]) -> None:
    """Drop the state of the named parameters, because a reassignment has replaced their values."""
    parameters = dict(module.named_parameters())
    for name in names:
        optimizer.state.pop(parameters[name], None)
