"""Does the number of colours matter? Fits palettes of several sizes and trains, scores and probes the same small model
on each, at equal training FLOPs. Writes a plot, a table and results.json.

hf-igpt palette_sweep palette-sweep-digits
accelerate launch scripts/palette_sweep.py recipes/palette-sweep-cifar10.yaml --palette_sizes 16 512

Takes a recipe and every option of pretrain. Run again with the same options, it redoes nothing that is finished: each
palette has a folder, a whole run of pretrain with its evaluations and probe.
"""

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command, use_cpu_threads
from hf_igpt.training.arguments import PretrainArguments


logger = logging.getLogger(__name__)

PLOT, TABLE = "palette-sweep.png", "table.md"
# Options of pretrain that mean nothing here.
WITHOUT_EFFECT = ("token_kind", "num_colors", "palette", "tokens", "init_from", "fold_validation", "push_to_hub")


@dataclass(kw_only=True)
class PaletteSweepArguments(PretrainArguments):
    """Options of palette_sweep beside those of pretrain, which hold for every palette."""

    output_dir: str = option("outputs/palette-sweep", "folder for plot, table, results.json and a run of each palette")
    palette_sizes: list[int] = option(
        [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096], "colours of the palettes", low=2, high=4096
    )
    max_steps: int = option(
        500, "optimizer steps with the smallest palette; larger ones take fewer, for equal training FLOPs", low=1
    )
    score_split: str = option(
        "test", "split whose likelihood is measured; validation chooses layers, penalties and smoothing"
    )

    def check(self) -> None:
        """Raises ValueError for options of pretrain that a sweep can't use."""
        super().check()
        fields = {field.name: field for field in dataclasses.fields(self)}
        for name in WITHOUT_EFFECT:
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"`{name}` has no effect in palette_sweep, which fits palettes itself. Leave it out.")
        if self.objective != "next_pixel":
            raise ValueError("`objective` must be next_pixel: a masked model has no exact likelihood to compare.")
        if len(set(self.palette_sizes)) < len(self.palette_sizes):
            raise ValueError(f"`palette_sizes` must differ, got {self.palette_sizes}.")


def parse(argv: list[str] | None = None) -> PaletteSweepArguments:
    """The options of palette_sweep, checked."""
    arguments = parse_arguments(PaletteSweepArguments, __doc__, argv)
    arguments.check()
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt palette_sweep`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.processes import on_first_process, process_state
    from hf_igpt.results import print_results, write_results
    from hf_igpt.storage import check_writable, write_bytes
    from hf_igpt.training.palette_sweep import equal_steps, save_sweep_plot, sweep_table
    from hf_igpt.training.runs import MODEL

    started, state = time.perf_counter(), process_state()
    use_cpu_threads(arguments.cpu_threads)
    folder = Path(arguments.output_dir)
    if (finished := on_first_process(lambda: _finished_results(arguments))) is not None:
        if state.is_main_process:
            logger.info("%s is finished: nothing to do.", folder)
            print_results(finished)
        return
    if state.is_main_process:
        check_writable(folder)
    sizes = sorted(arguments.palette_sizes)
    steps = equal_steps(arguments, sizes)
    if on_first_process(lambda: _without(arguments, MODEL)):
        _check_images(arguments)
    measured = [_measure(arguments, count, steps[count]) for count in sizes]
    if not state.is_main_process:
        return
    rows = [row for row, _ in measured]
    save_sweep_plot(rows, folder / PLOT)
    write_bytes(folder / TABLE, f"{sweep_table(rows)}\n".encode())
    results = write_results(
        folder,
        metrics={"palettes": rows},
        seeds={"seed": arguments.seed, "split_seed": arguments.split_seed},
        arguments=dataclasses.asdict(arguments),
        wall_seconds=time.perf_counter() - started,
        processes=state.num_processes,
        source=measured[0][1],
    )
    print_results(results)


def _folder_of(arguments: PaletteSweepArguments, count: int) -> Path:
    return Path(arguments.output_dir) / f"colors-{count}"


def _without(arguments: PaletteSweepArguments, stage: str) -> list[int]:
    """The sizes of palettes in whose folder a stage isn't there, or damaged."""
    from hf_igpt.storage import is_complete

    return [count for count in arguments.palette_sizes if not is_complete(_folder_of(arguments, count) / stage)]


def _finished_results(arguments: PaletteSweepArguments) -> dict[str, Any] | None:
    """The results of the same sweep, None where some of it isn't there or other options decided its numbers."""
    from hf_igpt.results import RESULTS, read_results
    from hf_igpt.training.runs import MODEL

    folder = Path(arguments.output_dir)
    if not all((folder / name).is_file() for name in (RESULTS, PLOT, TABLE)):
        return None
    results = read_results(folder)
    if _decisive(results["arguments"]) != _decisive(dataclasses.asdict(arguments)):
        return None
    return None if _without(arguments, MODEL) else results


def _decisive(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a sweep's arguments that decide its numbers; the order of the palettes doesn't."""
    from hf_igpt.training.run_folder import CHANGEABLE

    kept = {name: value for name, value in arguments.items() if name not in CHANGEABLE}
    return kept | {"palette_sizes": sorted(kept.get("palette_sizes", []))}


def _check_images(arguments: PaletteSweepArguments) -> None:
    """Everything that the data can lack, before anything is trained."""
    from hf_igpt.commands.probe import SPLITS
    from hf_igpt.data.options import crop_fields, grid_size, load_source
    from hf_igpt.data.preparation import count_in_parts
    from hf_igpt.data.token_repository import PALETTE
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.processes import on_first_process, process_state
    from hf_igpt.training.palette_sweep import check_distinct

    with process_state().main_process_first():
        source = load_source(arguments)
    if lacking := [split for split in (*SPLITS, arguments.score_split) if split not in source.splits]:
        raise ValueError(
            f"{source.name} has no split {lacking[0]!r}, which the sweep needs. Give a `validation_fraction` or a "
            "`test_fraction`."
        )
    if source.label_column is None:
        raise ValueError(f"{source.name} has no classes to probe for: name them with `label_column`.")
    # Colours were counted before a palette was fitted.
    if unknown := on_first_process(lambda: _without(arguments, PALETTE)):
        processor = IGPTImageProcessor(size=grid_size(arguments), **crop_fields(arguments.crop_size))
        check_distinct(count_in_parts(source, processor, arguments.skip_damaged), unknown)


def _measure(arguments: PaletteSweepArguments, count: int, steps: int) -> tuple[dict[str, Any], Any]:
    """
    A palette's row and where its images are from, by the commands themselves in a folder of its own; nothing on the
    processes but the first.
    """
    from hf_igpt.commands.evaluate import EvaluateArguments, evaluate
    from hf_igpt.commands.probe import ProbeArguments, probe
    from hf_igpt.data.token_repository import PALETTE
    from hf_igpt.evaluation.color_density import DENSITIES
    from hf_igpt.processes import process_state
    from hf_igpt.results import read_results
    from hf_igpt.training.palette_sweep import sweep_row
    from hf_igpt.training.pretraining import pretrain
    from hf_igpt.training.runs import MODEL

    folder = _folder_of(arguments, count)
    options = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(PretrainArguments)}
    run = pretrain(PretrainArguments(**options | {"num_colors": count, "max_steps": steps, "output_dir": str(folder)}))
    common = {"cpu_threads": arguments.cpu_threads}
    model = str(folder / MODEL)
    batch = {"batch_size": arguments.per_device_eval_batch_size, "split": arguments.score_split}
    scores = {
        density: evaluate(EvaluateArguments(model=model, color_density=density, **batch, **common))
        for density in DENSITIES
    }
    found = probe(model, ProbeArguments(model=[model], **common))
    if not process_state().is_main_process:
        return {}, None
    return sweep_row(run, read_results(folder / PALETTE), scores, found), run["dataset"]


if __name__ == "__main__":
    main()
