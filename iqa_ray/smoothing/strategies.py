"""The nine strategies of Chen et al. (Table 2), what they are held against, and the test sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iqa_ray.distortions import PAPER_LEVELS
from iqa_ray.smoothing.settings import TABLE_STRATEGIES

Labels = Literal["original", "iqa", "uniform", "shuffled"]
MixName = Literal["pristine", "blur", "noise", "jpeg", "all3"]

# Chen et al., section 4.3: of pristine images and of the three levels, in every epoch
PRISTINE_SHARE, LEVEL_SHARES = 0.60, (0.15, 0.15, 0.10)
KINDS = {"blur": "gaussian_blur", "noise": "noise", "jpeg": "jpeg"}
NUM_LEVELS = len(LEVEL_SHARES)

# the versions of an image, in the columns of Table 2: name, then distortion and parameter
VERSIONS: dict[str, tuple[str, float] | None] = {"pristine": None} | {
    f"{kind}-{level + 1}": (distortion, PAPER_LEVELS["label_smoothing"][distortion][level])
    for kind, distortion in KINDS.items()
    for level in range(NUM_LEVELS)
}
TEST_SETS = tuple(VERSIONS)

_MIX_OF = {"1": "pristine", "2": "blur", "4": "noise", "6": "jpeg", "8": "all3"}


@dataclass(frozen=True)
class Strategy:
    """A way to train: on which mix of versions, and with which labels.

    Attributes:
        name: the row of Table 2, with `-uniform` or `-shuffled` for what it is held against.
        mix: of versions.
        labels: `original` are certain; `iqa` follow the quality; `uniform` are all as sure as the
            former are in the mean; `shuffled` are those of other images of the same epoch.
        score: which quality; empty for `original`.
    """

    name: str
    mix: MixName
    labels: Labels
    score: str = ""

    @property
    def title(self) -> str:
        """Method and training set, as a run is called."""
        return f"{self.name} {self.method} {self.training_set}"

    @property
    def method(self) -> str:
        """The column `Regularization Method` of Table 2."""
        names = {
            "original": "Original",
            "iqa": "IQA-LS",
            "uniform": "uniform LS",
            "shuffled": "shuffled LS",
        }
        return f"{names[self.labels]} {self.score}".rstrip()

    @property
    def training_set(self) -> str:
        """The column `Training Set` of Table 2."""
        name = "JPEG" if self.mix == "jpeg" else self.mix
        return "Pristine" if self.mix == "pristine" else f"MIX_{name}"


BASELINE = Strategy("1", "pristine", "original")


def list_strategies(names: tuple[str, ...], scores: tuple[str, ...]) -> list[Strategy]:
    """The strategies of these names; those that follow a quality once for each score."""
    found = []
    for name in names:
        number, _, control = name.partition("-")
        is_original = number in _MIX_OF
        mix: MixName = _MIX_OF[number if is_original else str(int(number) - 1)]  # type: ignore[assignment]
        if is_original:
            found.append(Strategy(name, mix, "original"))
            continue
        labels: Labels = control or "iqa"  # type: ignore[assignment]
        found += [Strategy(name, mix, labels, score) for score in scores]
    return found


def pair_strategies(strategies: list[Strategy]) -> list[tuple[Strategy, Strategy]]:
    """Which are compared: IQA-LS with what else was trained on its mix.

    That is original labels first, which is the claim of Chen et al., then uniform and shuffled
    ones of the same score.
    """
    return [
        (better, worse)
        for better in strategies
        if better.labels == "iqa"
        for worse in strategies
        if worse.mix == better.mix and worse.labels != "iqa" and worse.score in ("", better.score)
    ]


def share_versions(mix: MixName) -> tuple[float, ...]:
    """The share of each version in an epoch; in `all3` the kinds share each level equally."""
    shares = dict.fromkeys(VERSIONS, 0.0)
    if mix == "pristine":
        return (1.0, *[0.0] * (len(VERSIONS) - 1))
    shares["pristine"] = PRISTINE_SHARE
    kinds = list(KINDS) if mix == "all3" else [mix]
    for kind in kinds:
        for level, share in enumerate(LEVEL_SHARES):
            shares[f"{kind}-{level + 1}"] = share / len(kinds)
    return tuple(shares.values())


assert set(TABLE_STRATEGIES) >= set(_MIX_OF)
