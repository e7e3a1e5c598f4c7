"""Which device computes, and in which number format."""

import torch


def choose_device(wanted: str) -> str:
    """The torch device to compute on; `auto` takes a GPU where there is one. ValueError for one that is not there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"expected a torch device such as cpu, cuda or cuda:1, got {wanted!r}. Use auto") from error
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"expected a CUDA GPU for --device {wanted}, found none. Use --device cpu or auto")
    return wanted


def product_dtype(device: torch.device) -> torch.dtype:
    """The number format of the products; weights and optimiser are float32 everywhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
