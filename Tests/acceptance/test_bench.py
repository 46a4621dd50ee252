"""The arithmetic of tools/bench: who is best, which way a goal goes, and when a figure says nothing."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location(
    "bench_results", Path(__file__).parents[2] / "tools" / "benchlib" / "results.py")
results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(results)
Figure, Goal = results.Figure, results.Goal


def figure(unit, ours, peers, goals, **more):
    return Figure("row", "case", unit, ours, peers, goals, **more)


@pytest.mark.parametrize("unit, goal, best, ratio, met", [
    ("s", Goal.ratio_at_most(0.6), "quick", 0.5, True),
    ("s", Goal.ratio_at_most(0.4), "quick", 0.5, False),
    ("requests/s", Goal.ratio_at_least(0.5), "slow", 0.25, False),
    ("requests/s", Goal.ratio_at_least(0.25), "slow", 0.25, True),
])
def test_the_best_peer_is_the_one_that_the_unit_says_and_the_median_counts(unit, goal, best, ratio, met):
    found = figure(unit, [9.0, 1.0, 1.0], {"quick": [2.0, 2.0, 0.1], "slow": [4.0, 4.0, 90.0], "none": []}, goal)
    assert (found.best_peer, found.ratio(), found.met) == (best, ratio, met)
    assert found.cells()[-1] == ("yes" if met else "NO")


def test_every_goal_has_to_be_met_and_a_named_peer_is_the_one_that_counts():
    peers = {"weak": [10.0], "strong": [5.0]}
    assert figure("s", [6.0], peers, Goal.ratio_at_most(1)).met is False
    named = figure("s", [6.0], peers, Goal.ratio_at_most(1, of="weak"))
    assert (named.met, named.reference, named.ratio()) == (True, "weak", 0.6)
    assert figure("s", [6.0], peers, (Goal.ratio_at_most(1, of="weak"), Goal.at_most(5.9))).met is False
    assert figure("s", [6.0], peers, (Goal.ratio_at_most(1, of="weak"), Goal.at_most(6.0))).met is True
    assert figure("calls/s", [6.0], {}, Goal.at_least(6.1)).met is False


def test_what_cannot_be_said_is_neither_met_nor_missed():
    peers = {"peer": [1.0]}
    goal = Goal.ratio_at_most(0.5)
    assert figure("s", [], peers, goal).met is None
    assert figure("s", [1.0], {}, goal).met is None
    assert figure("s", [1.0], peers, goal, noise=[0.5, 0.5, 0.0]).met is None
    assert figure("s", [1.0], peers, goal, noise=[0.0, 0.0, 0.5]).met is False
    # A load generator at its limit can hide that a goal is met, not that it is.
    assert figure("s", [1.0], peers, goal, limit="fio is the limit").met is None
    assert figure("s", [0.5], peers, goal, limit="fio is the limit").met is True
    # One goal that is missed is a miss, whatever else cannot be said.
    assert figure("s", [1.0], {}, (goal, Goal.at_most(0.5))).met is False
    assert figure("s", [1.0], {}, goal).cells()[-1] == "?"
    with pytest.raises(ValueError, match="better"):
        figure("parsecs", [1.0], {}, ())


def test_a_figure_is_told_in_json_and_in_a_row_of_markdown():
    found = figure("ms", [3.0, 1.0, 2.0], {"a|b": [4.0]}, Goal.ratio_at_most(1), notes=["so"])
    told = found.to_json()
    assert (told["ours"], told["ours_all"], told["ratio"], told["met"], told["goals"]) == (
        2.0, [3.0, 1.0, 2.0], 0.5, True, ["<= 1 x"])
    assert results.markdown_line(found.cells(), found.all_notes()) == (
        "| row | case | 2 ms | 4 a\\|b | 0.50 | <= 1 x | yes | so; rounds 1-3 |")
