"""Our SAE artefact as a sae-bench SAE: the same weights, the same encode and decode, the settings sae-bench reads."""

import warnings

import torch
from sae_bench.custom_saes.base_sae import BaseSAE
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from torch import Tensor

from language_model.hooks import parse_hook
from store.sae.artefact import SAECard
from store.sae.weights import SAEWeights, decode, encode


class StoredSAE(BaseSAE):
    """An artefact of any form, in float32 whatever the language model's dtype.

    sae-bench casts SAEs to the language model's dtype; bfloat16 weights would change L0 and the reconstruction.
    """

    def hold(self, weights: SAEWeights) -> None:
        """Takes the artefact's parameters, on the device this SAE is on."""
        self._k = weights.k
        for name, tensor in _parameters(weights).items():
            setattr(self, name, torch.nn.Parameter(tensor.to(self.W_dec.device, copy=True), requires_grad=False))

    def weights(self) -> SAEWeights:
        """What it computes with."""
        optional = {name: getattr(self, name, None) for name in ("threshold", "r_mag", "b_mag")}
        return SAEWeights(self.W_enc, self.b_enc, self.W_dec, self.b_dec, k=self._k, **optional)

    def encode(self, x: Tensor) -> Tensor:
        """Activations of latents, (..., F) float32, of language-model activations (..., d) of any dtype."""
        return encode(self.weights(), x.to(self.W_enc.dtype))

    def decode(self, feature_acts: Tensor) -> Tensor:
        """Reconstruction (..., d) of activations of latents (..., F)."""
        return decode(self.weights(), feature_acts)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruction (..., d) of language-model activations (..., d)."""
        return self.decode(self.encode(x))


def _parameters(weights: SAEWeights) -> dict[str, Tensor]:
    """Every tensor of an artefact under the name of its field."""
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag")
    return {name: tensor for name in names if (tensor := getattr(weights, name)) is not None}


def to_sae_bench(weights: SAEWeights, card: SAECard, *, device: torch.device) -> StoredSAE:
    """The artefact as a sae-bench SAE on `device`, formatted by sae-bench's own loader.

    sae-bench's SAEs begin with all-zero weights and an unloaded one evaluates to chance level instead of failing, so
    the result is checked: its parameters are those of the artefact, and it encodes and decodes as
    store/sae/weights.py does.

    Raises:
        ValueError: the parameters or the outputs differ.
    """
    d_model, d_sae = weights.W_enc.shape
    sae = StoredSAE(
        d_in=d_model,
        d_sae=d_sae,
        model_name=card.model.name,
        hook_layer=parse_hook(card.hook).layer if card.model.is_language_model else 0,
        device=device,
        dtype=torch.float32,
        hook_name=card.hook,
    )
    sae.hold(weights)
    sae.cfg.architecture = card.architecture
    sae.cfg.context_size = card.context_length
    with warnings.catch_warnings():
        # A decoder with free norms is as valid here: nothing in `core` assumes unit rows.
        warnings.filterwarnings("ignore", message="Decoder weights are not normalized", category=UserWarning)
        formatted = load_and_format_sae(card.name, sae, str(device))
    assert formatted is not None
    assert formatted[1] is sae
    sae.eval()
    _check_same(sae, weights, card)
    return sae


@torch.no_grad()
def _check_same(sae: StoredSAE, weights: SAEWeights, card: SAECard) -> None:
    """Compares parameters exactly, and outputs on probe rows within the rounding of float32."""
    for name, tensor in _parameters(weights).items():
        if not torch.equal(getattr(sae, name).cpu(), tensor.cpu()):
            raise ValueError(
                f"expected sae-bench's copy of {card.name} to hold the artefact's {name}, got other numbers. "
                "The installed sae-bench is not the one this adapter was written for (0.6.0)"
            )
    generator = torch.Generator().manual_seed(0)
    # Rows of the activations' own size: scale * x has mean square 1 per channel.
    probe = torch.randn(8, card.d_model, generator=generator) / card.scale + weights.b_dec.cpu()
    expected_latents = encode(weights, probe.to(weights.W_enc.device)).cpu()
    expected = decode(weights, expected_latents.to(weights.W_enc.device)).cpu()
    latents = sae.encode(probe.to(sae.W_enc.device))
    outputs = (("encode", latents.cpu(), expected_latents), ("decode", sae.decode(latents).cpu(), expected))
    for what, found, wanted in outputs:
        if not torch.allclose(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()) + 1e-12):
            raise ValueError(
                f"expected sae-bench's {what} of {card.name} to equal store/sae/weights.py's, got a difference of "
                f"{float((found - wanted).abs().max()):.3g}. Results from it would not be about this SAE"
            )
