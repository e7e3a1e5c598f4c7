"""Runs the upper part of a language model again and again on changed activations, without running the lower part.

`Resumable` runs a batch of text once and keeps, for each sequence, the activations at the hook. Later it continues from
there: layers up to the hook pass on what they are given. The head runs on few positions at a time, because logits of a
large vocabulary take more memory than all else.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from language_model.families import GEMMA
from language_model.hooks import parse_hook

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Resumable:
    """A causal language model cut in two at a hook.

    Args:
        model: Hugging Face's.
        hook: a TransformerLens name, such as blocks.12.hook_resid_post.
    """

    def __init__(self, model: "PreTrainedModel", hook: str) -> None:
        self._model = model
        self._base = model.base_model
        self._layers = list(getattr(self._base, GEMMA.layers))
        self._num_lower = parse_hook(hook).layer + 1

    @property
    def vocab_size(self) -> int:
        """Logits per position."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    @torch.no_grad()
    def run(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Activations at the hook and behind the final norm, both (sequences, context, d), of tokens of that shape."""
        found: list[Tensor] = []
        handle = self._layers[self._num_lower - 1].register_forward_hook(
            lambda _module, _arguments, output: found.append(output[0] if isinstance(output, tuple) else output)
        )
        try:
            final = self._base(input_ids=tokens, use_cache=False).last_hidden_state
        finally:
            handle.remove()
        return found[0], final

    @torch.no_grad()
    def resume(self, tokens: Tensor, activations: Tensor) -> Tensor:
        """What is behind the final norm, (sequences, context, d), with `activations` of that shape at the hook."""
        with contextlib.ExitStack() as stack:
            for layer in self._layers[: self._num_lower]:
                stack.enter_context(_instead(layer, lambda hidden_states, *_, **__: hidden_states))
            # The last lower layer gives the activations, whatever the layers before it passed on.
            stack.enter_context(_instead(self._layers[self._num_lower - 1], lambda *_, **__: activations))
            final: Tensor = self._base(input_ids=tokens, use_cache=False).last_hidden_state
        return final

    @torch.no_grad()
    def logits(self, final: Tensor) -> Tensor:
        """Logits in float32, (positions, vocabulary), of `final` (positions, d) behind the final norm.

        By the model's own head: bias, scaling and soft-capping included.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPast

        given = BaseModelOutputWithPast(last_hidden_state=final[None])
        with _instead(self._base, lambda *_, **__: given):
            logits: Tensor = self._model(
                input_ids=torch.zeros(1, len(final), dtype=torch.long, device=final.device)
            ).logits
        return logits[0].float()


@contextlib.contextmanager
def _instead(module: nn.Module, forward: Any) -> Iterator[None]:  # noqa: ANN401 - any function of a module's arguments
    """Calls `forward` wherever `module` is called."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
