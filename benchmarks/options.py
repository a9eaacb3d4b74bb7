"""Likelihood and probes of runs that differ in optimizer, learning rate, rotary positions and seed alone; see
runs/options.sh.

python benchmarks/options.py --results outputs/options/*-[01] --probes outputs/options/*-probe --output options.json
"""

from typing import Any

from compared_runs import options_parser, over_seeds, read_probes, read_runs, write_comparison


# What may differ between the runs.
VARIED = ("optimizer", "rotary_base", "learning_rate", "seed", "output_dir", "dataset_name", "tokens")


def options_of(arguments: dict[str, Any]) -> str:
    name = "Muon" if arguments["optimizer"] == "muon" else "Adam"
    if arguments["rotary_base"] is not None:
        name += f" and rotary positions (base {arguments['rotary_base']:g})"
    return f"{name}, {arguments['learning_rate']:g}"


def main() -> None:
    arguments = options_parser(__doc__).parse_args()
    results, shared = read_runs(arguments.results, VARIED)
    rows = over_seeds(results, read_probes(arguments.probes), options_of)
    if arguments.output:
        write_comparison(arguments.output, "options", rows, results[0], shared)


if __name__ == "__main__":
    main()
