"""Says what a pretraining run costs and where it fits, before anything is downloaded or built.

hf-igpt plan imagenet32-igpt-l --device h100 h200 --devices 8
hf-igpt plan all --device cpu h100 h200

Takes a recipe and every option of pretrain. `all` in place of a recipe plans every shipped one.
"""

import time
from dataclasses import asdict, fields
from pathlib import Path

from hf_igpt.arguments import load_recipe, parse_arguments, shipped_recipes
from hf_igpt.commands.running import run_command, use_cpu_threads
from hf_igpt.training.plan_arguments import PlanArguments


ALL = "all"
# Other commands that recipes are written for, by a field that a recipe of pretrain can't have; and their options.
OTHERS = {
    "finetune": "FinetuneArguments",
    "probe": "ProbeArguments",
    "palette_sweep": "PaletteSweepArguments",
    "train_vqvae": "TrainVQVAEArguments",
}


def parse(argv: list[str] | None = None) -> dict[str, PlanArguments]:
    """The options of every run to plan, checked, by the recipe's name."""
    import sys

    argv = sys.argv[1:] if argv is None else argv
    recipe = argv[0] if argv and not argv[0].startswith("-") else None
    if recipe == ALL:
        names = [name for name in shipped_recipes() if _command_of(name) == "pretrain"]
        return {name: parse_arguments(PlanArguments, __doc__, [name, *argv[1:]]) for name in names}
    if recipe is not None and (command := _command_of(recipe)) != "pretrain":
        raise ValueError(f"{recipe} is a recipe of {command}: plan takes those of pretrain.")
    name = "pretrain" if recipe is None else Path(recipe).stem
    return {name: parse_arguments(PlanArguments, __doc__, argv)}


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt plan`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    runs = parse(argv)
    from hf_igpt.results import print_results, write_results
    from hf_igpt.storage import check_writable
    from hf_igpt.training.plan_text import plan_text, plans_table
    from hf_igpt.training.planning import plan

    started = time.perf_counter()
    first = next(iter(runs.values()))
    use_cpu_threads(first.cpu_threads)
    plans = []
    for name, arguments in runs.items():
        try:
            plans.append(plan(arguments, name))
        except ValueError as error:
            if len(runs) == 1:
                raise
            raise ValueError(f"{name}: {error}") from error
    folder = Path(first.plan_dir or f"outputs/plan/{ALL if len(runs) > 1 else plans[0]['recipe']}")
    _refuse_foreign(folder)
    check_writable(folder)
    print(plan_text(plans[0]) if len(plans) == 1 else plans_table(plans))
    results = write_results(
        folder,
        metrics={"plans": plans},
        arguments=asdict(first) if len(runs) == 1 else _own_options(first),
        wall_seconds=time.perf_counter() - started,
    )
    print_results(results)


def _command_of(recipe: str) -> str:
    """The command that a recipe is for, by its fields; "pretrain" where that can't be told."""
    import importlib

    given = load_recipe(recipe)[0].keys()
    if given <= {field.name for field in fields(PlanArguments)}:
        return "pretrain"
    for command, options in OTHERS.items():
        known = getattr(importlib.import_module(f"hf_igpt.commands.{command}"), options)
        if given <= {field.name for field in fields(known)}:
            return command
    return "pretrain"


def _own_options(arguments: PlanArguments) -> dict:
    return {name: getattr(arguments, name) for name in PlanArguments.__annotations__}


def _refuse_foreign(folder: Path) -> None:
    """Never over the results of a run."""
    from hf_igpt.results import RESULTS, read_results

    if (folder / RESULTS).is_file() and "plans" not in read_results(folder)["metrics"]:
        raise ValueError(f"{folder} holds the results of something else. Choose another `--plan_dir`.")


if __name__ == "__main__":
    main()
