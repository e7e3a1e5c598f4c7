"""Which variant is compared with which, and how many variants are sorted into treatments and families."""

from typing import Any

from evaluate.compare.seeds import seed_groups
from evaluate.compare.treatments import baseline_of, families, shown_in_full
from store.identity import ModelIdentity
from store.sae.artefact import SAECard

ZERO, ONE = {"kind": "fixed", "value": 0.0}, {"kind": "fixed", "value": 1.0}


def card(name: str, schedule: dict[str, Any], *, seed: int = 0, **settings: Any) -> SAECard:  # noqa: ANN401
    return SAECard(
        format="sae-card/1", name=name, key=name, architecture="relu", form="relu", k=None, d_model=2, d_sae=4,
        hook="blocks.0.hook_resid_post", cache_digest="c", context_length=8, scale=1.0, seed=seed, num_steps=1,
        num_training_rows=1, train_version=1, final={}, weights_sha256="w", train={"batch_rows": 4, "seed": 0},
        variant={"lambda": schedule, "l1": 1.0, "seed": seed, **settings},
        model=ModelIdentity(
            name="tiny", revision=None, weights_sha256="a", tokenizer_sha256="b", d_model=2, num_layers=1, vocab_size=5,
            bos_token_id=0,
        ),
    )  # fmt: skip


def by_name(*cards: SAECard) -> dict[str, SAECard]:
    return {variant.name: variant for variant in cards}


STUDY = by_name(
    card("baseline", ZERO),
    card("baseline-1", ZERO, seed=1),
    card("baseline-dense", ZERO, l1=0.5),
    card("fixed", ONE, lambda_regularizer=0.1),
    card("fixed-1", ONE, seed=1),
    card("fixed-dense", ONE, l1=0.5),
    card("fixed-dense-1", ONE, l1=0.5, seed=1),
    card("fixed-2", ONE, seed=2),
    card("fixed-max", ONE, penalty={"kind": "max-cosine"}),
)


def test_a_variant_is_compared_with_the_baseline_that_differs_by_the_treatment_alone() -> None:
    found = {name: baseline_of(name, STUDY) for name in STUDY}
    assert found == {
        "baseline": "baseline",
        "baseline-1": "baseline-1",
        "baseline-dense": "baseline-dense",
        "fixed": "baseline",
        "fixed-1": "baseline-1",
        "fixed-dense": "baseline-dense",
        "fixed-dense-1": "baseline-1",  # no baseline of its l1 and seed: that of its seed
        "fixed-2": "baseline",  # none of its seed either
        "fixed-max": "baseline",
    }
    assert baseline_of("fixed", by_name(STUDY["fixed"])) is None


def test_a_frozen_decoder_is_a_treatment_of_its_own_though_its_lambda_is_the_baselines() -> None:
    frozen, soft = {"kind": "frozen"}, {"kind": "soft-frozen", "min_cosine": 0.8}
    cards = by_name(
        card("frozen-1", ZERO, seed=1, decoder=frozen),
        card("baseline", ZERO),
        card("baseline-1", ZERO, seed=1),
        card("soft-dense", ZERO, l1=0.5, decoder=soft),
        card("baseline-dense", ZERO, l1=0.5),
        card("fixed-1", ONE, seed=1),
    )
    assert {name: baseline_of(name, cards) for name in cards} == {
        "frozen-1": "baseline-1", "baseline": "baseline", "baseline-1": "baseline-1", "soft-dense": "baseline-dense",
        "baseline-dense": "baseline-dense", "fixed-1": "baseline-1",
    }  # fmt: skip
    assert len(families(cards)) == 4  # the baselines of two sparsities and two seeds are one family


def test_seeds_are_replicates_with_a_mean_and_a_spread() -> None:
    metrics = {name: {"core/l0": float(index)} for index, name in enumerate(STUDY)}
    groups = {group.variants: group for group in seed_groups(STUDY, metrics)}
    assert ("baseline", "baseline-1") in groups
    assert ("fixed-dense", "fixed-dense-1") in groups
    spread = groups["baseline", "baseline-1"].spreads["core/l0"]
    assert spread.mean == 0.5
    assert spread.deviation is not None
    assert abs(spread.deviation - 0.5**0.5) < 1e-12  # of 0 and 1: sqrt((0.25 + 0.25) / 1)


def test_one_seed_under_two_names_counts_once_in_the_spread() -> None:
    cards = by_name(card("a", ONE), card("again", ONE), card("b", ONE, seed=1))
    metrics = {"a": {"core/l0": 0.0}, "again": {"core/l0": 0.0}, "b": {"core/l0": 1.0}}
    (group,) = seed_groups(cards, metrics)
    assert group.variants == ("a", "again", "b")
    assert group.seeds == (0, 1)
    assert group.spreads["core/l0"].mean == 0.5


def test_a_family_is_one_treatment_at_several_sparsities() -> None:
    topk = {k: card(f"topk-{k}", ZERO, architecture={"kind": "topk", "k": k}) for k in (4, 8)}
    found = families(STUDY | by_name(*topk.values()))
    assert found["baseline"] == ["baseline", "baseline-1", "baseline-dense"]
    assert found["topk-4"] == ["topk-4", "topk-8"]
    assert found["fixed-1"] == ["fixed-1", "fixed-dense", "fixed-dense-1", "fixed-2"]


def test_of_many_variants_those_are_drawn_that_differ_from_the_baseline_by_the_treatment_alone() -> None:
    assert shown_in_full(STUDY) == list(STUDY)
    many = STUDY | by_name(*(card(f"seed-{seed}", ONE, seed=seed) for seed in range(3, 9)))
    assert shown_in_full(many) == ["baseline", "fixed", "fixed-max"]
