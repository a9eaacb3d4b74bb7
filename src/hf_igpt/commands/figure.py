"""Draws the paper's figures from the results.json files that probes and fine-tuning wrote.

hf-igpt figure --kind layers --results outputs/digits/probe-lbfgs-model

layers: accuracy by layer (figure 2). checkpoints: probe accuracy against validation loss (figure 3). bars: probe and
fine-tuning, next pixel and masked, with and without the ensemble over masks (figure 4).
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command


KINDS = ("layers", "checkpoints", "bars")


@dataclass(kw_only=True)
class FigureArguments:
    """Options of figure."""

    kind: str = option("layers", "which figure", choices=KINDS)
    results: list[str] | None = option(None, "folders with a results.json, or JSON files; needed")
    names: list[str] | None = option(
        None,
        "a name for each of the results; by default their checkpoint's. Of checkpoints, equal names form one curve",
    )
    output_dir: str | None = option(None, "folder for KIND.png and results.json; by default outputs/figure/KIND")


def parse(argv: list[str] | None = None) -> FigureArguments:
    """The options of figure, checked."""
    arguments = parse_arguments(FigureArguments, __doc__, argv)
    if not arguments.results:
        raise ValueError("Give `--results`: folders or JSON files that probe or finetune wrote.")
    if arguments.names and len(arguments.names) != len(arguments.results):
        raise ValueError(
            f"`names` must have one name for each of the {len(arguments.results)} results, got {len(arguments.names)}."
        )
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt figure`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.figures import FIGURES
    from hf_igpt.measured import Measured
    from hf_igpt.results import print_results, write_results
    from hf_igpt.storage import check_writable

    started = time.perf_counter()
    names = arguments.names or [None] * len(arguments.results)
    sources = zip(arguments.results, names, strict=True)
    measured = [Measured(_read(source), source, name) for source, name in sources]
    folder = Path(arguments.output_dir or f"outputs/figure/{arguments.kind}")
    _refuse_foreign(folder, arguments.kind)
    check_writable(folder)
    drawn = FIGURES[arguments.kind](measured, folder / f"{arguments.kind}.png")
    results = write_results(
        folder,
        metrics={"points": drawn},
        arguments=asdict(arguments),
        wall_seconds=time.perf_counter() - started,
        figure=arguments.kind,
    )
    print_results(results)


def _read(source: str) -> dict:
    from hf_igpt.results import RESULTS, read_results

    path = Path(source)
    if not (path if path.suffix == ".json" else path / RESULTS).is_file():
        raise ValueError(
            f"There is no {path if path.suffix == '.json' else path / RESULTS}: run probe or finetune first."
        )
    return read_results(path)


def _refuse_foreign(folder: Path, kind: str) -> None:
    """Never over the results of a probe, from which the figure may be drawn."""
    from hf_igpt.results import RESULTS, read_results

    if (folder / RESULTS).is_file() and read_results(folder).get("figure") != kind:
        raise ValueError(f"{folder} holds the results of something else. Choose another `--output_dir`.")


if __name__ == "__main__":
    main()
