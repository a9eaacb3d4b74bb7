import dataclasses
import re
from pathlib import Path

import pytest
import torch
from docs_scripts import tables

import hf_igpt
from hf_igpt import ImageGPTConfig, ImageGPTVQVAEModel
from hf_igpt.arguments import SHIPPED_RECIPES, load_recipe, parse_arguments, shipped_recipes
from hf_igpt.commands import finetune, palette_sweep, plan, probe, train_vqvae
from hf_igpt.commands.main import configuration
from hf_igpt.data.options import token_layout
from hf_igpt.results import read_results
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.cost import parameters, training_flops, vqvae_training_flops
from hf_igpt.training.objectives import model_class
from hf_igpt.training.planning import optimizer_steps, planned_tokens
from hf_igpt.training.pretraining import model_config
from hf_igpt.training.throughput import training_seconds
from hf_igpt.training.vqvae_training import vqvae_config


ROOT = Path(__file__).parents[1]
FINETUNING = [name for name in shipped_recipes() if name.endswith("-finetune")]
PROBING = [name for name in shipped_recipes() if name.endswith("-probe")]
SWEEPS = [name for name in shipped_recipes() if name.startswith("palette-sweep-")]
TOKENIZERS = [name for name in shipped_recipes() if name.endswith("-vqvae")]
NAMES = [name for name in shipped_recipes() if name not in (*FINETUNING, *PROBING, *SWEEPS, *TOKENIZERS)]


def arguments_of(name: str) -> PretrainArguments:
    return parse_arguments(PretrainArguments, "", [name])


def test_which_recipes_there_are():
    sizes = ("cifar10", "digits", "imagenet32-igpt-l", "imagenet32-igpt-m", "imagenet32-igpt-s")
    others = ("cifar10-cpu", "cifar10-masked-cpu", "imagenet48-igpt-l", "imagenet64-igpt-xl")
    others += ("imagenet64-igpt-s-windows", "cifar10-cpu-progressive", "cifar10-rgb", "imagenet192-codes-igpt-l")
    others += ("cifar10-speedrun", "cifar10-best", "cifar10-best-cpu")
    assert {*others, *sizes, *(f"{name}-masked" for name in sizes)} == set(NAMES)
    assert (ROOT / "recipes").resolve() == SHIPPED_RECIPES.resolve()
    assert Path(hf_igpt.__file__).parent in SHIPPED_RECIPES.parents


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_taken_by_name_and_by_path(name):
    arguments = arguments_of(name)
    assert arguments_of(str(ROOT / "recipes" / f"{name}.yaml")) == arguments
    assert arguments.output_dir == f"outputs/{name}"
    needed = {"dataset_name", "image_size", "total_batch_size", "learning_rate"}
    needed.add("num_colors" if arguments.token_kind == "palette" else "token_kind")
    assert needed - load_recipe(name)[0].keys() == set()


@pytest.mark.parametrize("name", shipped_recipes())
def test_the_header_says_what_to_know(name):
    header = tables.recipe_header(name)
    assert tuple(header) == tables.RECIPE_HEADER and all(header.values())
    commands = {"finetune": FINETUNING, "probe": PROBING, "palette_sweep": SWEEPS, "train_vqvae": TOKENIZERS}
    command = next((command for command, names in commands.items() if name in names), "pretrain")
    assert re.search(rf"\b{command} {name}\b", header["Command"])


def test_recipes_of_fine_tuning():
    """The paper's protocol (section 3.4): batch 128, Adam (0.9, 0.95), no dropout, a constant rate, early stopping."""
    names = ("digits", "cifar10", "cifar10-cpu", "cifar100", "stl10", "imagenet32")
    assert {f"{name}-finetune" for name in names} == set(FINETUNING)
    for name in FINETUNING:
        arguments = finetune.parse([name])
        assert arguments == finetune.parse([str(ROOT / "recipes" / f"{name}.yaml")])
        assert arguments.output_dir == f"outputs/{name}"
        assert (arguments.adam_beta1, arguments.adam_beta2, arguments.dropout) == (0.9, 0.95, 0)
        assert arguments.total_batch_size == (32 if name in ("digits-finetune", "cifar10-cpu-finetune") else 128)


def test_recipes_of_probes():
    """The paper's protocol (section 3.4): L-BFGS on the small data sets; on ImageNet SGD over a million steps."""
    assert {f"{name}-probe" for name in ("digits", "cifar10", "cifar100", "stl10", "imagenet32")} == set(PROBING)
    for name in PROBING:
        arguments = probe.parse([name])
        assert arguments == probe.parse([str(ROOT / "recipes" / f"{name}.yaml")])
        assert arguments.solver == ("sgd" if name == "imagenet32-probe" else "lbfgs")
        # All layers, as the paper features them.
        assert (arguments.layers, arguments.norm, arguments.concatenate) == (None, "post", 1)
    arguments = probe.parse(["imagenet32-probe"])
    assert (arguments.max_steps, arguments.rates("sgd")[:3]) == (1_000_000, (30, 10, 3))
    assert probe.parse(["cifar10-probe"]).labels_per_class == [4, 25, 400]


def test_recipes_of_palette_sweeps():
    assert {f"palette-sweep-{name}" for name in ("digits", "cifar10", "cifar10-cpu")} == set(SWEEPS)
    for name in SWEEPS:
        arguments = palette_sweep.parse([name])
        assert arguments == palette_sweep.parse([str(ROOT / "recipes" / f"{name}.yaml")])
        assert arguments.output_dir == f"outputs/{name}"
        smallest = dataclasses.replace(arguments, num_colors=min(arguments.palette_sizes))
        config = model_config(arguments, token_layout(smallest))
        cost = tables.recipe_header(name)["Cost"]
        assert parameters(config) / 1e6 == pytest.approx(float(re.search(r"([\d.]+)M parameters", cost)[1]), rel=0.03)
        flops = arguments.max_steps * arguments.total_batch_size * training_flops(config)
        assert flops == pytest.approx(float(re.search(r"([\d.e+]+) FLOP", cost)[1]), rel=0.03)
    # The paper's number of colours, and more than the palettes of the same images elsewhere have.
    assert palette_sweep.parse(["palette-sweep-cifar10"]).palette_sizes == [2**power for power in range(3, 13)]


def test_recipes_of_tokenizers():
    assert {f"{name}-vqvae" for name in ("digits", "cifar10-cpu", "imagenet192")} == set(TOKENIZERS)
    for name in TOKENIZERS:
        arguments = train_vqvae.parse([name])
        assert arguments == train_vqvae.parse([str(ROOT / "recipes" / f"{name}.yaml")])
        assert arguments.output_dir == f"outputs/{name}"
        with pytest.raises(ValueError, match="is a recipe of train_vqvae"):
            plan.parse([name])
    arguments = train_vqvae.parse(["imagenet192-vqvae"])
    config = vqvae_config(arguments)
    assert config.grid_of(*arguments.image_size * 2) == (48, 48) and config.codebook_size == 4096


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_and_its_cost(name):
    arguments = train_vqvae.parse([name])
    config, cost = vqvae_config(arguments), tables.recipe_header(name)["Cost"]
    with torch.device("meta"):
        size = ImageGPTVQVAEModel(config).num_parameters()
    assert size / 1e6 == pytest.approx(float(re.search(r"([\d.]+)M parameters", cost)[1]), abs=0.006)
    of_image = vqvae_training_flops(config, *arguments.image_size * 2)
    if stated := re.search(r"([\d.]+) GFLOP an image", cost):
        assert of_image / 1e9 == pytest.approx(float(stated[1]), rel=0.01)
    # Digits without test and validation.
    steps = arguments.max_steps or arguments.num_train_epochs * -(-1294 // arguments.total_batch_size)
    images = steps * arguments.total_batch_size
    assert images * of_image == pytest.approx(float(re.search(r"([\d.e+]+) FLOP\b", cost)[1]), rel=0.03)
    if stated := re.search(r"for the ([\d.]+)M images", cost):
        assert images / 1e6 == pytest.approx(float(stated[1]), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_the_model_and_its_cost(name):
    arguments = arguments_of(name)
    layout, _ = planned_tokens(arguments)
    config = model_config(arguments, layout)
    with torch.device("meta"):
        model = model_class(config)(config)
    assert config.is_causal != name.endswith(("masked", "masked-cpu"))
    parameters = model.num_parameters()
    assert (config.num_values, config.grid, config.token_kind) == (layout.num_values, layout.grid, layout.token_kind)
    cost = tables.recipe_header(name).get("Cost", "")
    if stated := re.search(r"([\d.]+)([MB]) parameters", cost):
        assert parameters / {"M": 1e6, "B": 1e9}[stated[2]] == pytest.approx(float(stated[1]), rel=0.02)
    of_image, of_run = (re.search(pattern, cost) for pattern in (r"([\d.]+) GFLOP an image", r"([\d.e+]+) FLOP\b"))
    assert of_image or of_run, cost
    if of_image:
        assert training_flops(config) / 1e9 == pytest.approx(float(of_image[1]), rel=0.01)
    if of_run:
        images = optimizer_steps(plan.parse([name])[name]) * arguments.total_batch_size
        assert images * training_flops(config) == pytest.approx(float(of_run[1]), rel=0.03)
    if stated := re.search(r"for the ([\d.]+)M images", cost):
        assert images / 1e6 == pytest.approx(float(stated[1]), rel=0.01)


def made(name: str) -> Path:
    return ROOT / "docs" / "results" / f"{name}.json"


@pytest.mark.parametrize("name", [name for name in (*NAMES, *FINETUNING, *TOKENIZERS) if made(name).is_file()])
def test_the_time_is_that_of_the_run_that_was_made(name):
    run, cost = read_results(made(name)), tables.recipe_header(name)["Cost"]
    seconds = training_seconds(run["log_history"], run["arguments"]["total_batch_size"])
    found = re.search(r"(under )?(a|\d+) minutes?", cost)
    minutes = 1 if found[2] == "a" else int(found[2])
    assert seconds / 60 < minutes if found[1] else round(seconds / 60) == minutes
    if stated := re.search(r"(\d+) images/s", cost):
        assert round(run["metrics"]["images_seen"] / seconds) == int(stated[1])
    if stated := re.search(r"(\d+) with validation", cost):
        assert round(run["wall_seconds"] / 60) == int(stated[1])


def test_a_pixel_at_64_by_64_costs_at_most_half_more_than_one_at_32_by_32():
    arguments = arguments_of("imagenet64-igpt-s-windows")
    windowed, whole = model_config(arguments, token_layout(arguments)), ImageGPTConfig.from_preset("igpt-s")
    per_pixel = [training_flops(config) / config.n_positions for config in (windowed, whole)]
    assert (windowed.hidden_size, windowed.num_hidden_layers) == (whole.hidden_size, whole.num_hidden_layers)
    stated = float(re.search(r"([\d.]+) times", tables.recipe_header("imagenet64-igpt-s-windows")["Paper row"])[1])
    assert per_pixel[0] / per_pixel[1] == pytest.approx(stated, abs=0.005)
    assert per_pixel[0] < 1.5 * per_pixel[1]


@pytest.mark.parametrize("objective", ["next_pixel", "masked"])
@pytest.mark.parametrize(("name", "parameters"), [("s", 76e6), ("m", 455e6), ("l", 1362e6)])
def test_the_papers_recipes(name, parameters, objective):
    """Sizes of table 1, schedule of §3.3: Adam (0.9, 0.95), batch 128, a million steps, no weight decay or dropout."""
    suffix = "-masked" if objective == "masked" else ""
    arguments = arguments_of(f"imagenet32-igpt-{name}{suffix}")
    config = model_config(arguments, token_layout(arguments))
    with torch.device("meta"):
        model = model_class(config)(config)
    assert (arguments.objective, arguments.mask_rate) == (objective, 0.15)
    assert model.num_parameters() == pytest.approx(parameters, rel=0.01)
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay, arguments.dropout) == (0.9, 0.95, 0, 0)
    assert (arguments.total_batch_size, arguments.max_steps, arguments.warmup_epochs) == (128, 1_000_000, 1)
    rates = {"next_pixel": {"s": 3e-3, "m": 3e-3, "l": 1e-3}, "masked": {"s": 1e-2, "m": 3e-3, "l": 1e-3}}
    assert arguments.learning_rate == rates[objective][name]
    assert (arguments.validation_fraction, arguments.augmentation) == (0.04, "random_resized_crop")


@pytest.mark.parametrize(
    ("name", "side", "parameters", "batch", "steps", "rate"),
    [
        ("imagenet48-igpt-l", 48, 1_364e6, 128, 1_000_000, 1e-3),
        ("imagenet64-igpt-xl", 64, 6_811e6, 64, 2_000_000, 3e-4),
    ],
)
def test_the_papers_recipes_at_higher_resolutions(name, side, parameters, batch, steps, rate):
    """Tables 2 and 5; they are launched in shards, by a configuration that is there."""
    arguments = arguments_of(name)
    config = model_config(arguments, token_layout(arguments))
    with torch.device("meta"):
        assert model_class(config)(config).num_parameters() == pytest.approx(parameters, rel=0.001)
    assert arguments.image_size == [side] and config.is_causal
    assert (arguments.total_batch_size, arguments.max_steps, arguments.learning_rate) == (batch, steps, rate)
    shared = ("adam_beta1", "adam_beta2", "weight_decay", "dropout", "warmup_epochs", "crop_size", "augmentation")
    at_32 = arguments_of("imagenet32-igpt-l")
    assert [getattr(arguments, field) for field in shared] == [getattr(at_32, field) for field in shared]
    command = tables.recipe_header(name)["Command"]
    stated = re.search(r"--config_file (\S+) --num_processes (\d+)(?: --num_machines (\d+))?", command)
    assert Path(configuration(stated[1])).is_file() and batch % int(stated[2]) == 0
    assert int(stated[2]) / int(stated[3] or 1) <= 8, "no machine has more"
