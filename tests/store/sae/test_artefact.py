"""The SAE artefact keeps what was trained, works in SAELens, and is refused when it is not what was written."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from store.errors import DamagedFile, StoreError
from store.sae.artefact import load_card, load_sae, read_log, save_sae
from store.sae.geometry import unit_rows
from store.sae.weights import SAEWeights, decode, encode, fold_scale
from tests.store.cache_fixture import make_spec

D_MODEL, D_SAE = 8, 20


def random_weights(seed: int = 0) -> SAEWeights:
    generator = torch.Generator().manual_seed(seed)
    return SAEWeights(
        W_enc=torch.randn(D_MODEL, D_SAE, generator=generator),
        b_enc=torch.randn(D_SAE, generator=generator),
        W_dec=unit_rows(torch.randn(D_SAE, D_MODEL, generator=generator)),
        b_dec=torch.randn(D_MODEL, generator=generator),
    )


def write(folder: Path, weights: SAEWeights | None = None) -> SAEWeights:
    weights = weights or random_weights()
    fields = {
        "name": "toy",
        "key": "k" * 64,
        "architecture": weights.form,
        "hook": "blocks.1.hook_resid_post",
        "model": make_spec().model,
        "cache_digest": "c" * 64,
        "context_length": 9,
        "scale": 0.5,
        "seed": 0,
        "num_steps": 10,
        "num_training_rows": 100,
        "train_version": 1,
        "variant": {"lambda": {"kind": "fixed", "value": 0.0}},
        "train": {"lr": 0.001},
        "final": {"mse": 1.5, "lambda_state": "on the floor"},
    }
    save_sae(folder, weights, fields, [{"step": 0, "mse": 2.0}, {"step": 10, "mse": 1.5}])
    return weights


def test_weights_card_and_log_come_back(tmp_path: Path) -> None:
    written = write(tmp_path / "toy")
    weights, card = load_sae(tmp_path / "toy")
    for name, tensor in written.tensors().items():
        assert torch.equal(weights.tensors()[name], tensor)
    assert (card.name, card.d_model, card.d_sae, card.final["mse"]) == ("toy", D_MODEL, D_SAE, 1.5)
    assert [line["step"] for line in read_log(tmp_path / "toy")] == [0, 10]


def of_form(form: str) -> SAEWeights:
    """Random weights of a form, with thresholds and gates that decide for about half of the latents."""
    weights, generator = random_weights(), torch.Generator().manual_seed(5)
    draw = torch.rand(3, D_SAE, generator=generator)
    match form:
        case "topk":
            return replace(weights, k=3)
        case "jumprelu":
            return replace(weights, threshold=3.0 * draw[0])
        case "gated":
            return replace(weights, r_mag=draw[1] - 0.5, b_mag=draw[2] - 0.5)
        case _:
            return weights


FORMS = pytest.mark.parametrize("form", ["relu", "topk", "jumprelu", "gated"])


@FORMS
def test_saelens_loads_the_folder_and_encodes_and_decodes_identically(form: str, tmp_path: Path) -> None:
    weights = write(tmp_path / "toy", of_form(form))
    loaded, card = load_sae(tmp_path / "toy")
    theirs = SAE.load_from_disk(tmp_path / "toy")
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = theirs.encode(x)
        assert torch.equal(latents, encode(weights, x))
        assert torch.equal(latents, encode(loaded, x))
        assert torch.equal(theirs.decode(latents), decode(weights, latents))
    assert theirs.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
    assert (card.form, loaded.form, card.k) == (form, form, 3 if form == "topk" else None)


def test_encode_and_decode_by_hand() -> None:
    # x - b_dec = (1, 2); pre-activations 1 - 2 + 0.5 < 0 and 1 + 2 + 0.5 = 3.5; reconstruction 3.5 (0, 1) + (1, 1).
    weights = SAEWeights(
        W_enc=torch.tensor([[1.0, 1.0], [-1.0, 1.0]]),
        b_enc=torch.tensor([0.5, 0.5]),
        W_dec=torch.eye(2),
        b_dec=torch.tensor([1.0, 1.0]),
    )
    latents = encode(weights, torch.tensor([[2.0, 3.0]]))
    assert latents.tolist() == [[0.0, 3.5]]
    assert decode(weights, latents).tolist() == [[1.0, 4.5]]


def test_the_other_forms_by_hand() -> None:
    # One channel, b_dec = 1, W_enc = (1, 2, -1), b_enc = (0, -1, 0): x = 3 has pre = (2, 3, -2).
    plain = SAEWeights(
        W_enc=torch.tensor([[1.0, 2.0, -1.0]]),
        b_enc=torch.tensor([0.0, -1.0, 0.0]),
        W_dec=torch.ones(3, 1),
        b_dec=torch.tensor([1.0]),
    )
    x = torch.tensor([[3.0]])
    assert encode(replace(plain, k=1), x).tolist() == [[0.0, 3.0, 0.0]]
    assert encode(replace(plain, k=3), x).tolist() == [[2.0, 3.0, 0.0]]  # the third is chosen, but negative
    assert encode(replace(plain, threshold=torch.tensor([2.0, 2.0, 0.0])), x).tolist() == [[0.0, 3.0, 0.0]]
    # gate as pre; magnitude relu(e^r (x - b_dec) W_enc + b_mag) with e^r = 2: (4 - 1, 8 + 1, closed)
    gated = replace(plain, r_mag=torch.full((3,), 2.0).log(), b_mag=torch.tensor([-1.0, 1.0, 9.0]))
    torch.testing.assert_close(encode(gated, x), torch.tensor([[3.0, 9.0, 0.0]]))


@FORMS
def test_a_folded_scale_gives_the_training_time_forward_on_raw_activations(form: str) -> None:
    weights, scale = of_form(form), 0.0123
    raw = 80.0 * torch.randn(100, D_MODEL, dtype=torch.float32, generator=torch.Generator().manual_seed(4))
    folded = fold_scale(weights, scale)
    torch.testing.assert_close(encode(folded, raw), encode(weights, raw * scale) / scale, rtol=1e-4, atol=1e-3)
    reconstruction = decode(weights, encode(weights, raw * scale)) / scale
    torch.testing.assert_close(decode(folded, encode(folded, raw)), reconstruction, rtol=1e-4, atol=1e-2)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "toy")
    path = tmp_path / "toy" / "sae_weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedFile, match=r"sae_weights\.safetensors with SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}"):
        load_sae(tmp_path / "toy")
    path.unlink()
    with pytest.raises(DamagedFile, match="got no file"):
        load_sae(tmp_path / "toy")


def test_a_folder_without_a_card_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"expected a trained SAE in .*found no card\.json.*dvc repro train"):
        load_sae(tmp_path)


def test_a_foreign_card_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "toy")
    path = tmp_path / "toy" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"surprise": 1}))
    with pytest.raises(StoreError, match=r"card\.json to hold a SAECard, but surprise"):
        load_sae(tmp_path / "toy")


@pytest.mark.parametrize(
    ("form", "edit", "message"),
    [
        ("topk", {"k": -5}, r"expected k of 1 to d_sae = 20 in the form topk, got -5"),
        ("topk", {"k": 10**9}, r"expected k of 1 to d_sae = 20 in the form topk, got 1000000000"),
        ("topk", {"k": None}, r"expected k of 1 to d_sae = 20 in the form topk, got None"),
        ("relu", {"k": 3}, r"expected no k in the form 'relu', got 3"),
        ("relu", {"architecture": "batchtopk"}, r"expected form 'jumprelu' of a batchtopk SAE, got 'relu'"),
        ("relu", {"name": "<script>alert(1)</script>"}, r"name"),
        ("relu", {"name": "../toy"}, r"name"),
        ("relu", {"hook": "blocks.1<b>"}, r"hook"),
        ("relu", {"d_sae": -20}, r"d_sae"),
        ("relu", {"scale": 0.0}, r"scale"),
    ],
)
def test_a_card_that_contradicts_itself_is_refused(
    tmp_path: Path, form: str, edit: dict[str, object], message: str
) -> None:
    write(tmp_path / "toy", of_form(form))
    path = tmp_path / "toy" / "card.json"
    load_card(tmp_path / "toy")
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    with pytest.raises(StoreError, match=message):
        load_card(tmp_path / "toy")


def test_weights_that_are_not_finite_or_misshaped_are_never_written(tmp_path: Path) -> None:
    good = random_weights()
    with pytest.raises(StoreError, match=r"expected finite weights .* in b_enc"):
        write(tmp_path / "nan", SAEWeights(good.W_enc, good.b_enc * float("nan"), good.W_dec, good.b_dec))
    with pytest.raises(StoreError, match="expected float32 tensors"):
        write(tmp_path / "shape", SAEWeights(good.W_enc, good.b_enc, good.W_dec.T, good.b_dec))
    assert not list(tmp_path.rglob("*.safetensors"))
