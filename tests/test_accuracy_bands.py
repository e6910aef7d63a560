"""How the widths of bands are fitted over sources (tools/generate/accuracy_bands.py)."""

import math
from functools import cache
from types import ModuleType

import pytest

from advisor.estimate.memory.bands import KNOWN, WORDS
from benchmarks import refit
from benchmarks.refit import Fitted, replace_marked, widths_lines
from tools.generate.accuracy import Case, without_model, without_trainer
from tools.generate.accuracy_bands import (
    Distance,
    distances,
    farthest,
    fitted,
    fitted_without_each,
    gpu_gib,
    is_inside,
    quantile,
)


def run(source: str, log: float, *doubts: str) -> Distance:
    return Distance(Case({"source": source}, {}), log, doubts)


def sources(count: int, *doubts: str, scale: float = 0.01) -> list[Distance]:
    """Sources whose runs all lie 1, 2, 3 ... times `scale` from the estimate, on both sides."""
    return [
        run(f"s{number}", sign * scale * number, *doubts)
        for number in range(1, count + 1)
        for sign in (-1, 1, 1, -1)
    ]


def test_a_width_covers_a_share_of_the_sources_and_one_more_for_few():
    """Rank (n + 1) p of n, each source once: the 13th of 19 below, the 14th above, the 5th of 5."""
    assert fitted({KNOWN: sources(19)})[KNOWN] == pytest.approx((0.13, 0.14))
    assert fitted({KNOWN: sources(5)})[KNOWN] == pytest.approx((0.04, 0.05))
    assert farthest(sources(19) + [run("s1", 0.0)] * 1000, {KNOWN: (0.18, 0.19)}, 0, 0.9) <= 1


def test_a_doubt_adds_the_width_that_its_runs_need_in_squares():
    """Known runs lie within 0.3; with the trainer taken away, all within 0.5: it adds 0.4."""
    known = sources(5, scale=0.06)
    found = fitted({KNOWN: known, "trainer": sources(5, "trainer", scale=0.1)})
    assert found[KNOWN] == pytest.approx((0.24, 0.3))
    assert (found["trainer"], found["loss"]) == (pytest.approx((0.44, 0.4)), (0.0, 0.0))
    # A fact that changes no estimate brings the band to the share of sources that doubts have.
    changed = [Distance(row.case, row.log, ("counter",)) for row in known]
    assert fitted({KNOWN: known, "counter": changed})["counter"] == pytest.approx((0.18, 0.0))


def test_widths_of_a_source_left_out_do_not_know_it():
    """The farthest source does not widen the band that it is asked about."""
    rows = [*sources(8), *[run("far", 0.9)] * 4]
    without = fitted_without_each({KNOWN: rows})
    for left_out, width, inside in (("far", 0.07, False), ("s1", 0.08, False)):
        assert without[left_out][KNOWN][1] == pytest.approx(width)
        assert is_inside(rows[-1], without[left_out]) is inside


def test_quantiles_lie_between_neighbours():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 1.0], 0.95) == pytest.approx(0.95)


def test_distances_read_the_doubts_that_an_answer_names():
    """log(measured / estimated), and keys for words."""
    answer = {"peak_gib": 10.0, "band_because": [WORDS["experts"]]}
    (found,) = distances([Case({"source": "a", "measured_gib": 20.0}, answer)])
    assert (found.log, found.doubts) == (pytest.approx(math.log(2)), ("experts",))


def test_taking_a_fact_away_leaves_the_rest():
    """A model's name becomes its size, a trainer's name a word that nobody knows."""
    spec = {"model": "meta-llama/Llama-3.1-8B", "framework": "axolotl", "seq_len": 512}
    assert without_model(spec) == {
        "framework": "axolotl",
        "seq_len": 512,
        "model_params_b": pytest.approx(8.03, abs=0.01),
    }
    unnamed = without_trainer({**spec, "year": "2025"})
    assert unnamed == {**spec, "year": "2025", "framework": "unknown trainer", "date": "2025"}


@pytest.mark.parametrize(
    ("facts", "gib"),
    [
        ({"card_gib": 24, "gpu": "NVIDIA A100-80GB"}, 24),
        ({"gpu": "NVIDIA A100-SXM4-80GB"}, pytest.approx(80, rel=0.02)),
        ({}, None),
    ],
)
def test_the_memory_of_a_gpu_is_the_source_s_or_the_catalogue_s(facts, gib):
    assert gpu_gib(facts) == gib


def test_widths_are_written_between_their_marks(tmp_path):
    """Only the marked lines change; a file without marks is refused."""
    path = tmp_path / "bands.py"
    path.write_text("a\n# fitted widths\nold\n# end of fitted widths\nb\n")
    replace_marked(path, "fitted widths", widths_lines({"known": (0.1, 0.25)}))
    assert path.read_text() == (
        "a\n# fitted widths\nWIDTHS: Mapping[str, tuple[float, float]] = {\n"
        '    "known": (0.10, 0.25),\n}\n# end of fitted widths\nb\n'
    )
    with pytest.raises(ValueError, match="no lines between"):
        replace_marked(path, "something else", [])


def test_a_refit_scales_constants_and_puts_them_back(monkeypatch: pytest.MonkeyPatch):
    """Numbers and tables of numbers, by a factor of what they are; one that is gone is named."""
    assert len(refit.originals()) >= len(refit.FITTED)
    monkeypatch.setattr(refit, "originals", cache(refit.originals.__wrapped__))
    module = ModuleType("constants")
    vars(module).update(BYTES=4.0, CACHE={"reserved": 0.5, "allocated": 0.0})
    monkeypatch.setattr(refit, "FITTED", (Fitted(module, ("BYTES", "CACHE"), (1.0, 2.0)),))
    refit.use((2.0,))
    assert vars(module)["BYTES"] == 8.0
    assert vars(module)["CACHE"] == {"reserved": 1.0, "allocated": 0.0}
    refit.use((1.0,))
    assert vars(module)["BYTES"] == 4.0
    monkeypatch.setattr(refit, "FITTED", (Fitted(module, ("GONE",), (1.0,)),))
    refit.originals.cache_clear()
    with pytest.raises(LookupError, match=r"constants\.GONE"):
        refit.use((1.0,))
