"""What fits into the time that a comparison may take: fewer seeds, then fewer steps, then fewer methods."""

import math

from peft_helpers.analysis.linear_probe import count_in_steps
from peft_helpers.arguments import Arguments
from peft_helpers.batches import format_seconds

FEWEST_STEPS = 20
Runs = list[tuple[str, int]]  # methods with their seeds


def fit_to_budget(runs: Runs, args: Arguments, seconds: dict[str, tuple[float, float]]) -> tuple[Runs, Arguments]:
    """Return the runs, and the arguments with the steps, that fit into ``comparison_minutes``; print what they take.

    ``seconds`` has for each method those of a run without its steps, and those of a step. What is left out is printed;
    the quickest method always stays.
    """
    budget, steps = 60 * args.comparison.comparison_minutes, args.comparison.comparison_steps
    fitting, left_out = list(runs), []

    def total(steps: int) -> float:
        return sum(seconds[name][0] + count_in_steps(steps) * seconds[name][1] for name, _ in fitting)

    for seed in sorted({seed for _, seed in runs}, reverse=True)[:-1]:
        if total(steps) > budget:
            fitting = [run for run in fitting if run[1] != seed]
            left_out.append(f"seed {seed}")
    while total(steps) > budget and steps > FEWEST_STEPS:  # by halves: the next time it should be as many again
        steps = max(FEWEST_STEPS, steps // 2)
    if steps < (asked := args.comparison.comparison_steps):
        left_out.append(f"{asked - steps} of {asked} steps")
    for run in sorted(fitting, key=lambda run: -(seconds[run[0]][1] or math.inf))[:-1]:  # first what failed
        if total(steps) > budget:
            fitting.remove(run)
            left_out.append(run[0])
    print(f"{len(fitting)} to run, {steps} steps each: about {format_seconds(total(steps))} here.")
    if left_out:
        print(f"To fit into --comparison_minutes {budget / 60:g}, these are left out: {', '.join(left_out)}.")
    return fitting, args.replace(comparison_steps=steps)
