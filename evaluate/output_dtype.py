"""SAEs that stay float32 and hand their reconstructions back in the language model's number format."""

from typing import Any

import torch


def reconstructing_in(sae: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401 - a StoredSAE
    """`sae`, whose `decode` takes latents of any format and gives `dtype`: sae-bench writes it into the language model.

    sae-bench casts the whole SAE to that format, which would change which latents fire.
    """
    decode = sae.decode

    def decode_in(latents: torch.Tensor) -> torch.Tensor:
        reconstruction: torch.Tensor = decode(latents.float()).to(dtype)
        return reconstruction

    sae.decode = decode_in
    return sae
