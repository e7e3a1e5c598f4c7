"""Runs the upper part of a language model again and again on changed activations, without running the lower part.

`Resumable` runs a batch of text once and keeps, for each sequence, the activations at the hook. Later it continues from
there: layers up to the hook pass on what they are given. (What attention or an MLP adds is added to what the lower part
gives, so for those hooks the lower part runs again.) The head runs on few positions at a time, because logits of a
large vocabulary take more memory than all else.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from language_model.hooks import parse_hook
from language_model.sites import attach
from language_model.structure import decoder_layers, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Resumable:
    """A causal language model cut in two at a hook.

    Args:
        model: Hugging Face's.
        hook: a TransformerLens name, such as blocks.12.hook_resid_post.

    Raises:
        ValueError: the layers of this model have no such site.
    """

    def __init__(self, model: "PreTrainedModel", hook: str) -> None:
        self._model = model
        self._base = model.base_model
        self._family = family_of(model)
        self._layers = list(decoder_layers(model))
        self._number, self._site = parse_hook(hook)
        self._output_type: type[Any] | None = None

    @property
    def vocab_size(self) -> int:
        """Logits per position."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    @torch.no_grad()
    def run(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Activations at the hook and behind the final norm, both (sequences, context, d), of tokens of that shape."""
        found: list[Tensor] = []
        handle = attach(self._layers[self._number], self._site, self._family, found.append)
        try:
            final = self._base_output(tokens)
        finally:
            handle.remove()
        return found[0], final

    @torch.no_grad()
    def resume(self, tokens: Tensor, activations: Tensor) -> Tensor:
        """What is behind the final norm, (sequences, context, d), with `activations` of that shape at the hook."""
        with contextlib.ExitStack() as stack:
            num_passing = {"resid_pre": self._number, "resid_post": self._number + 1}.get(self._site, 0)
            passed = (lambda x, *_, **__: (x,)) if self._family.layers_give_tuples else (lambda x, *_, **__: x)
            for layer in self._layers[:num_passing]:
                stack.enter_context(_instead(layer, passed))
            # Whatever the layers before passed on, the activations take its place.
            handle = attach(self._layers[self._number], self._site, self._family, lambda _: activations)
            stack.callback(handle.remove)
            return self._base_output(tokens)

    def _base_output(self, tokens: Tensor) -> Tensor:
        """What is behind the final norm."""
        output = self._base(input_ids=tokens, use_cache=False)
        self._output_type = type(output)
        final: Tensor = output.last_hidden_state
        return final

    @torch.no_grad()
    def logits(self, final: Tensor) -> Tensor:
        """Logits in float32, (positions, vocabulary), of `final` (positions, d) behind the final norm.

        By the model's own head: bias, scaling and soft-capping included. `run` or `resume` gave `final`.
        """
        assert self._output_type is not None, "the base model has not run"
        given = self._output_type(last_hidden_state=final[None])  # heads read fields that their family's type has
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
