"""docs/arms.md: every line on the page, pasted as it stands, makes valid variants."""

import re
from pathlib import Path

import pytest
import yaml

from params import Params, load_params
from train.config import resolve, shape_key

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "arms.md").read_text()
LINES = [line for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
NAMES = [line.split(":")[0].strip() for line in LINES]
PROFILES = list(yaml.safe_load((ROOT / "params.yaml").read_text())["profiles"])


def pasted(lines: list[str], folder: Path, *, profile: str = "embedded") -> Params:
    """params.yaml with these lines under `grid:`."""
    text = (ROOT / "params.yaml").read_text()
    assert text.count("\ngrid: {}\n") == 1
    assert text.count("\nprofile: embedded\n") == 1
    text = text.replace("\ngrid: {}\n", "\n".join(["\ngrid:", *lines, ""])).replace(
        "profile: embedded", f"profile: {profile}", 1
    )
    (folder / "params.yaml").write_text(text)
    return load_params(folder / "params.yaml")


def test_the_page_has_the_arms_that_a_reviewer_expects() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {"small", "frozen", "soft-frozen", "batchtopk", "matryoshka", "ortsae", "dual"} <= set(NAMES)


@pytest.mark.parametrize("line", LINES, ids=NAMES)
def test_every_line_is_an_arm_of_three_seeds_by_itself(line: str, tmp_path: Path) -> None:
    name = line.split(":")[0].strip()
    params = pasted([line], tmp_path)
    added = {key: variant for key, variant in params.variants.items() if key.startswith(name)}
    assert len(params.variants) == 5 + len(added)
    settings = [resolve(params.profile.train, variant) for variant in added.values()]
    assert {variant.seed for variant in settings} == {0, 1, 2}
    by_seed = [[v.model_copy(update={"seed": 0}) for v in settings if v.seed == seed] for seed in (0, 1, 2)]
    assert by_seed[0] == by_seed[1] == by_seed[2]


@pytest.mark.parametrize("profile", PROFILES)
def test_all_lines_together_are_a_study_under_every_profile(profile: str, tmp_path: Path) -> None:
    params = pasted(LINES, tmp_path, profile=profile)
    settings = [resolve(params.profile.train, variant) for variant in params.variants.values()]
    # One per arm and seed; small and ortsae have four and two.
    assert len(settings) == 5 + 3 * (len(LINES) + 3 + 1)
    kinds = {variant.architecture.kind for variant in settings}
    assert kinds == {"relu", "batchtopk", "matryoshka-batchtopk", "jumprelu", "gated"}
    # Held decoders and penalties are stacked with trained ones: a group for each kind of SAE.
    assert len({shape_key(variant) for variant in settings}) == len(kinds)


def test_ortsae_is_as_published(tmp_path: Path) -> None:
    params = pasted([LINES[NAMES.index("ortsae")]], tmp_path)
    every, fifth = (
        resolve(params.profile.train, params.variants[f"ortsae-every_steps-{steps}-seed-0"]) for steps in (1, 5)
    )  # fmt: skip
    for variant in (every, fifth):
        assert (variant.architecture.kind, variant.penalty.kind) == ("batchtopk", "max-cosine")
        assert variant.schedule.at(0.5) == 0.25
        assert variant.penalty_scale == "sum"
    assert [every.penalty.factor(step) for step in range(6)] == [1.0] * 6
    assert [fifth.penalty.factor(step) for step in range(6)] == [5.0, 0.0, 0.0, 0.0, 0.0, 5.0]
