"""docs/arms.md: every line on the page, pasted as it stands, makes valid variants."""

import re
from pathlib import Path

import pytest
import yaml

from params import Params, load_params
from train.config import VariantSettings, resolve, shape_key

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "arms.md").read_text()
LINES = [line for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()]
NAMES = [line.split(":")[0].strip() for line in LINES]
# The 128 latents of `synthetic` are too few for the widths of `matryoshka`, and `embedded-full` has the lines already.
FILE = yaml.safe_load((ROOT / "params.yaml").read_text())
PROFILES = sorted(FILE["profiles"].keys() - {"synthetic", "embedded-full"})


def pasted(lines: list[str], folder: Path, *, profile: str = "embedded") -> Params:
    """params.yaml with these lines at the top of `grid:`."""
    text = (ROOT / "params.yaml").read_text()
    for place in ("\ngrid:\n", "\nprofile: embedded\n"):
        assert text.count(place) == 1
    text = text.replace("\ngrid:\n", "\n".join(["\ngrid:", *lines, ""]))
    (folder / "params.yaml").write_text(text.replace("profile: embedded", f"profile: {profile}", 1))
    return load_params(folder / "params.yaml")


def added(lines: list[str], folder: Path, *, profile: str = "embedded") -> dict[str, VariantSettings]:
    """The variants that these lines add, every setting filled in."""
    without = pasted([], folder, profile=profile)
    with_lines = pasted(lines, folder, profile=profile)
    train, before = without.profile.train, without.variants
    assert all(with_lines.variants[name] == variant for name, variant in before.items())
    return {name: resolve(train, variant) for name, variant in with_lines.variants.items() if name not in before}


def test_the_page_has_the_arms_that_a_reviewer_expects() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {"small", "frozen", "soft-frozen", "batchtopk", "matryoshka", "ortsae", "dual"} <= set(NAMES)


def test_the_full_profile_has_the_lines_of_the_page() -> None:
    assert FILE["profiles"]["embedded-full"]["grid"] == yaml.safe_load("\n".join(LINES))


@pytest.mark.parametrize("line", LINES, ids=NAMES)
def test_every_line_is_an_arm_of_three_seeds_by_itself(line: str, tmp_path: Path) -> None:
    name = line.split(":")[0].strip()
    settings = added([line], tmp_path)
    assert all(variant.startswith(f"{name}-") for variant in settings)
    by_seed = [
        [variant.model_copy(update={"seed": 0}) for variant in settings.values() if variant.seed == seed]
        for seed in (0, 1, 2)
    ]
    assert by_seed[0] == by_seed[1] == by_seed[2]
    assert 3 * len(by_seed[0]) == len(settings) > 0


@pytest.mark.parametrize("profile", PROFILES)
def test_all_lines_together_are_a_study_under_every_profile(profile: str, tmp_path: Path) -> None:
    settings = added(LINES, tmp_path, profile=profile)
    assert len(settings) == 3 * (len(LINES) + 3 + 1)  # one per arm and seed; small has four, ortsae two
    kinds = {variant.architecture.kind for variant in settings.values()}
    assert kinds == {"relu", "batchtopk", "matryoshka-batchtopk", "jumprelu", "gated"}
    # Held decoders and penalties are stacked with trained ones: a group for each kind of SAE.
    assert len({shape_key(variant) for variant in settings.values()}) == len(kinds)


def test_ortsae_is_as_published(tmp_path: Path) -> None:
    settings = added([LINES[NAMES.index("ortsae")]], tmp_path)
    every, fifth = (settings[f"ortsae-every_steps-{steps}-seed-0"] for steps in (1, 5))
    for variant in (every, fifth):
        assert (variant.architecture.kind, variant.penalty.kind) == ("batchtopk", "max-cosine")
        assert (variant.schedule.at(0.5), variant.penalty_scale) == (0.25, "sum")
    assert [every.penalty.factor(step) for step in range(6)] == [1.0] * 6
    assert [fifth.penalty.factor(step) for step in range(6)] == [5.0, 0.0, 0.0, 0.0, 0.0, 5.0]
