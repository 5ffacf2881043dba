"""The entry of one of our networks in timm's registry."""

from __future__ import annotations

from collections.abc import Callable


def entry(
    side: int, first_conv: str, classifier: str = "fc", *, channels: int = 3, num_classes: int = 1000, **more: object
) -> dict[str, object]:
    """Return what timm keeps of a network beside its code; color images have ImageNet's mean and deviation."""
    rgb = channels == 3
    common = {
        "url": "",
        "num_classes": num_classes,
        "input_size": (channels, side, side),
        "interpolation": "bilinear",
        "crop_pct": 0.875,
        "mean": (0.485, 0.456, 0.406) if rgb else (0.5,) * channels,
        "std": (0.229, 0.224, 0.225) if rgb else (0.5,) * channels,
        "first_conv": first_conv,
        "classifier": classifier,
    }
    return common | more


def register(name: str, create: Callable[..., object], what: str) -> None:
    """Let timm call `create` by `name`; `what` it makes becomes its documentation."""
    from timm.models import register_model

    create.__name__ = create.__qualname__ = name  # what timm registers it under
    create.__doc__ = f"{name}: {what}."
    register_model(create)
