"""Losses of the language model without the SAE, with it, and with the hook set to zero, as defined by sae-bench `core`.

What no SAE changes is computed once: activations at the hook, what is behind the final norm, and the losses without the
SAE and ablated. Each SAE then costs the layers above the hook and the head. sae-bench's own code (get_recons_loss)
holds about ten tensors of all logits at once; here the head runs on few positions at a time. The numbers are the same,
and tests compare them. Logits, losses and divergences are float32 whatever the language model runs in: in bfloat16 a
mean would come in steps of about 0.4 %.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluate.upper_layers import Resumable

LOGIT_BYTES = 2**27
"""Of float32 logits at a time; fixed, because sums of another split differ in their last bits."""
LOGIT_COPIES = 5
"""Tensors of that size that exist at once at most: the logarithms of two sets of logits, and one set of logits while it
is capped and made float32."""
LOSSES = ("ce_loss_without_sae", "ce_loss_with_ablation", "kl_div_with_ablation")
_LOSSES_FILE = "losses.safetensors"


@dataclass(frozen=True)
class Counted:
    """Which positions count, both (sequences, context) of bool."""

    loss: NDArray[np.bool_]
    """Positions whose prediction of the next token counts: not the last, and not BOS, EOS or padding. So the prediction
    made from BOS is left out, as in sae-bench. Positions that have no rows in the cache do not count either."""
    divergence: NDArray[np.bool_]
    """Positions whose distribution over the next token counts: not BOS, EOS, padding, or without rows."""


def counted_positions(tokens: NDArray[np.uint32], ignored: frozenset[int], *, num_excluded: int) -> Counted:
    """The positions of `tokens` (sequences, context) that count: none of the first `num_excluded`."""
    counts = ~np.isin(tokens, sorted(ignored))
    counts[:, :num_excluded] = False
    loss = counts.copy()
    loss[:, -1] = False
    return Counted(loss=loss, divergence=counts)


@torch.no_grad()
def keep_losses(
    folder: Path,
    model: Resumable,
    tokens: NDArray[np.uint32],
    *,
    ignored: frozenset[int],
    num_excluded: int,
    batch_sequences: int,
    device: torch.device,
    progress: Callable[[int], object],
) -> None:
    """Runs the language model over `tokens` (sequences, context) and keeps what all SAEs share in `folder`.

    A file per batch has the activations at the hook and what is behind the final norm, in the model's dtype;
    losses.safetensors the sums per sequence (sequences,) of `LOSSES`, in nats.
    """
    sums = []
    for number, batch in enumerate(_batches(tokens, batch_sequences)):
        inputs = torch.from_numpy(batch.astype(np.int64)).to(device)
        activations, final = model.run(inputs)
        ablated = model.resume(inputs, torch.zeros_like(activations))
        counted = counted_positions(batch, ignored, num_excluded=num_excluded)
        plain, zeroed, divergence = _losses(model, final, ablated, inputs, counted)
        sums.append(torch.stack([plain, zeroed, divergence], dim=1))
        save_file(
            {"activations": activations.contiguous().cpu(), "final": final.contiguous().cpu()},
            _batch_file(folder, number),
        )
        progress(1)
    save_file({"sums": torch.cat(sums).cpu()}, folder / _LOSSES_FILE)


def kept_sums(folder: Path) -> NDArray[np.float64]:
    """What `keep_losses` computed: sums per sequence, (sequences, len(LOSSES))."""
    sums: NDArray[np.float64] = load_file(folder / _LOSSES_FILE)["sums"].numpy()
    return sums


@torch.no_grad()
def losses_with_sae(
    folder: Path,
    model: Resumable,
    tokens: NDArray[np.uint32],
    reconstruct: Callable[[Tensor], Tensor],
    *,
    ignored: frozenset[int],
    num_excluded: int,
    batch_sequences: int,
    device: torch.device,
    progress: Callable[[int], object],
) -> NDArray[np.float64]:
    """Sums per sequence of ce_loss_with_sae and kl_div_with_sae, (sequences, 2), in nats.

    `reconstruct` gives the SAE's output (positions, d) for activations of that shape. Positions of BOS, EOS and padding
    keep their activations. `folder` is what `keep_losses` filled, with the same tokens and batches.
    """
    sums = []
    for number, batch in enumerate(_batches(tokens, batch_sequences)):
        inputs = torch.from_numpy(batch.astype(np.int64)).to(device)
        kept = load_file(_batch_file(folder, number), device=str(device))
        counted = counted_positions(batch, ignored, num_excluded=num_excluded)
        replaced = torch.from_numpy(counted.divergence).to(device)
        activations = kept["activations"].clone()
        activations[replaced] = reconstruct(activations[replaced]).to(activations.dtype)
        _, with_sae, divergence = _losses(model, kept["final"], model.resume(inputs, activations), inputs, counted)
        sums.append(torch.stack([with_sae, divergence], dim=1))
        progress(1)
    found: NDArray[np.float64] = torch.cat(sums).cpu().numpy()
    return found


def _losses(
    model: Resumable, final: Tensor, changed: Tensor, tokens: Tensor, counted: Counted
) -> tuple[Tensor, Tensor, Tensor]:
    """Per sequence, float64: cross-entropy of `final`, of `changed`, and the divergence of the second from the first.

    `final` and `changed` are (sequences, context, d), behind the final norm.
    """
    num_sequences, context_length = tokens.shape
    device = tokens.device
    targets = torch.roll(tokens, -1, dims=1).reshape(-1)
    of_loss, of_divergence = (
        torch.from_numpy(mask.reshape(-1)).to(device) for mask in (counted.loss, counted.divergence)
    )
    sums = torch.zeros(3, num_sequences, dtype=torch.float64, device=device)
    wanted = torch.nonzero(of_loss | of_divergence)[:, 0]
    first, second = final.reshape(-1, final.shape[-1]), changed.reshape(-1, changed.shape[-1])
    # To map new memory for logits of all tokens takes as long as to compute them: what can be is done in place.
    kept = torch.empty(2, min(_chunk_positions(model), len(wanted)), model.vocab_size, device=device)
    for positions in wanted.split(_chunk_positions(model)):
        before, after = kept[0, : len(positions)], kept[1, : len(positions)]
        torch.log_softmax(model.logits(first[positions]), dim=-1, out=before)
        torch.log_softmax(model.logits(second[positions]), dim=-1, out=after)
        sequence = positions // context_length
        for row, logarithms in ((0, before), (1, after)):
            loss = -logarithms.gather(1, targets[positions, None])[:, 0].double()
            sums[row].index_add_(0, sequence, torch.where(of_loss[positions], loss, 0.0))
        divergence = -after.sub_(before).mul_(before.exp_()).sum(dim=-1).double()  # the sum of p (log p - log q)
        sums[2].index_add_(0, sequence, torch.where(of_divergence[positions], divergence, 0.0))
    return sums[0], sums[1], sums[2]


def _chunk_positions(model: Resumable) -> int:
    """Positions whose logits exist at a time."""
    return max(1, LOGIT_BYTES // (4 * model.vocab_size))


def _batches(tokens: NDArray[np.uint32], batch_sequences: int) -> Iterator[NDArray[np.uint32]]:
    for start in range(0, len(tokens), batch_sequences):
        yield tokens[start : start + batch_sequences]


def _batch_file(folder: Path, number: int) -> Path:
    return folder / f"batch-{number:05d}.safetensors"
