import pytest

from peft_helpers.comparison.budget import fit_to_budget

RUNS = [("head-only", 1), ("lora-r8", 1), ("lora-r8", 2), ("lora-r8", 3), ("full", 1)]
SECONDS = {"head-only": (1.0, 0.1), "lora-r8": (1.0, 0.2), "full": (1.0, 0.4)}  # 115 s with 100 steps


@pytest.mark.parametrize(
    ("minutes", "kept", "steps", "told"),
    [
        (2, RUNS, 100, ["5 to run, 100 steps each: about 115 s here."]),
        # A seed takes 21 s.
        (1.6, [run for run in RUNS if run[1] < 3], 100, ["4 to run, 100 steps each: about 94 s here.", "seed 3."]),
        # The first seeds take 3 s and 0.7 s a step; a head for fewer than 100 takes as long as 0.4 of each.
        (1.05, [run for run in RUNS if run[1] == 1], 50, ["about 52 s", "seed 3, seed 2, 50 of 100 steps."]),
        # 20 steps and their head take 3.8 s with the head alone, 6.6 s with LoRA and 12.2 s with all of it.
        (0.18, [("head-only", 1), ("lora-r8", 1)], 20, ["about 10 s", "80 of 100 steps, full."]),
        (0.01, [("head-only", 1)], 20, ["1 to run, 20 steps each", "80 of 100 steps, full, lora-r8."]),
    ],
)
def test_seeds_then_steps_then_the_slowest_methods_are_left_out_and_told(args, capsys, minutes, kept, steps, told):
    args = args.replace(comparison_minutes=minutes, comparison_steps=100)
    fitting, changed = fit_to_budget(RUNS, args, SECONDS)
    assert (fitting, changed.comparison.comparison_steps) == (kept, steps)
    output = capsys.readouterr().out
    assert all(words in output for words in told), output
    assert ("left out" in output) == (len(told) > 1)


def test_what_could_not_be_timed_is_left_out_first(args):
    args = args.replace(comparison_minutes=0.01, comparison_steps=3)
    fitting, _ = fit_to_budget([("qlora", 1), ("lora-r8", 1)], args, SECONDS | {"qlora": (0.0, 0.0)})
    assert fitting == [("lora-r8", 1)]


def test_few_steps_stay_as_they_are(args):
    assert (
        fit_to_budget(RUNS, args.replace(comparison_minutes=0.01, comparison_steps=3), SECONDS)[
            1
        ].comparison.comparison_steps
        == 3
    )
