"""Batch normalization whose statistics are those of all ranks' samples together, on CPUs and GPUs alike.

`torch.nn.SyncBatchNorm` refuses CPUs. With n_r samples of mean m_r and squared deviation s_r on rank r, one sum over
ranks of (n_r, n_r m_r, s_r + n_r m_r^2) gives the common mean and variance; the ranks' own s_r are computed about
their own means in single precision and only the small sums are formed in double precision, so nothing cancels.
Ioffe and Szegedy 2015, arXiv 1502.03167; the backward is their section 3 with its two sums taken over all ranks.

C channels, n samples a channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from selfcluster import distributed

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class BatchNorm(_BatchNorm):
    """`nn.BatchNorm1d/2d/3d` in one: (n, C, ...) in and out, statistics over all ranks of `group` in training.

    Parameters, buffers and their names are nn.BatchNorm's, and so are outputs and gradients of one process on the
    concatenated batch; the ranks' batches may differ in length. In evaluation, and alone, it is nn.BatchNorm.
    The gradients of weight and bias are this rank's part: their sum over ranks is the whole.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as nn.BatchNorm2d's.
        group: the process group that shares statistics; None = all ranks.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self._group = _Shared(group)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm needs (n, C, ...), got the shape {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        group = self._group.value
        own_statistics = self.running_mean is None  # without running statistics even evaluation uses the batch's
        if not (self.training or own_statistics) or distributed.world_size(group) == 1:
            y = super().forward(input)
        else:
            self._check_input_dim(input)
            y, mean, variance, n = _Normalize.apply(input, self.weight, self.bias, self.eps, group)
            if self.training and self.track_running_stats:
                self._follow(mean, variance, n)
        # timm's BatchNormAct2d carries its dropout and activation inside
        for inner in self.children():
            y = inner(y)
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        rate = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = variance * (n / (n - 1).clamp(min=1)).to(variance.dtype)
        self.running_mean += rate * (mean - self.running_mean)
        self.running_var += rate * (unbiased - self.running_var)


def convert_sync(module: nn.Module, group: ProcessGroup | None = None) -> nn.Module:
    """Give every batch normalization inside `module` statistics over all ranks of `group`.

    Parameters and buffers stay the same objects, so optimizers and checkpoints notice nothing. With one process the
    module is returned as it is: no synchronization is needed, and the native kernels are faster.

    Args:
        module: changed in place; its own class changes only if it is itself a batch normalization.
        group: the process group; None = all ranks.

    Returns:
        The module to use from now on.

    Raises:
        TypeError: a batch normalization of a class that is neither torch's nor timm's BatchNormAct2d.
    """
    return module if distributed.world_size(group) == 1 else _convert(module, group)


def _convert(module: nn.Module, group: ProcessGroup | None) -> nn.Module:
    if getattr(module, "fixed_statistics", False):  # always in evaluation mode: nothing to share
        return module
    if isinstance(module, _BatchNorm) and not isinstance(module, BatchNorm):
        return _shared(module, group)
    for name, child in module.named_children():
        new = _convert(child, group)
        if new is not child:
            setattr(module, name, new)
    return module


def _shared(old: _BatchNorm, group: ProcessGroup | None) -> BatchNorm:
    if type(old) not in _PLAIN and not {"drop", "act"} <= old._modules.keys():
        raise TypeError(
            f"cannot share the statistics of {type(old).__name__} between processes: its forward is its own"
        )
    new = BatchNorm(0, old.eps, old.momentum, group=group)
    new.num_features, new.affine, new.track_running_stats = old.num_features, old.affine, old.track_running_stats
    new._parameters, new._buffers, new._modules = old._parameters, old._buffers, old._modules
    new._non_persistent_buffers_set = old._non_persistent_buffers_set
    new._forward_hooks = old._forward_hooks  # a teacher's layer may be tapped here
    return new.train(old.training)


class _Shared:
    """A process group inside a module: copied modules keep it, since it cannot be copied itself."""

    def __init__(self, value: ProcessGroup | None) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, object]) -> _Shared:
        return self


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any) -> Any:
        mean, variance, n = _moments(x, group)
        ctx.save_for_backward(x, weight, mean, variance, n)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, variance, n)
        # with the statistics given this is the native normalization, fused on every device; it divides by 0 samples
        y = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if x.numel() else x.clone()
        return y, mean, variance, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, variance, n = ctx.saved_tensors
        dy = grads[0]
        # scaled = dy * weight / std; by_weight = sum dy * (x - mean) / std; by_bias = sum dy: this rank's sums
        scaled, by_weight, by_bias = dy, torch.zeros_like(mean), torch.zeros_like(mean)
        if x.numel():
            scaled, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
            )
        sums = distributed.all_reduce(torch.cat([by_weight, by_bias]).double(), ctx.group) / n
        of_weight, of_bias = sums.to(mean.dtype).chunk(2)
        inverse = (variance + ctx.eps).rsqrt()
        gain = inverse if weight is None else inverse * weight
        slope = gain * inverse * of_weight  # dx = scaled - gain * of_bias - slope * (x - mean)
        shape = (1, -1, *[1] * (x.dim() - 2))
        dx = scaled - (x * slope.view(shape) + (gain * of_bias - slope * mean).view(shape))
        mine = (None, None) if weight is None else (by_weight.to(weight.dtype), by_bias.to(weight.dtype))
        return dx.to(x.dtype), *mine, None, None


def _moments(x: Tensor, group: ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), biased variance (C,) and number of samples () over all ranks."""
    channels, over = x.shape[1], [d for d in range(x.dim()) if d != 1]
    single = torch.float64 if x.dtype == torch.float64 else torch.float32
    n = x.numel() // channels
    if n:
        spread, center = torch.var_mean(x.to(single), dim=over, correction=0)
    else:  # a rank without samples takes part in the sums all the same
        spread = center = x.new_zeros(channels, dtype=single)
    spread, center = spread.double(), center.double()
    sums = torch.cat([center.new_tensor([n]), n * center, n * (spread + center**2)])
    total, first, second = distributed.all_reduce(sums, group).split([1, channels, channels])
    mean = first / total
    variance = (second / total - mean**2).clamp(min=0)
    return mean.to(single), variance.to(single), total.squeeze(0)
