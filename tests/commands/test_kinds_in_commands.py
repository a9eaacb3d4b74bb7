"""The three kinds of tokens through every command, and what can't be done with one of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_recipe import write_recipe

from hf_igpt import AutoModelForCausalImageModeling, IGPTImageProcessor, ImageGPTVQVAEConfig, ImageGPTVQVAEModel
from hf_igpt.storage import is_complete


# Kind: values, tokens of an image of 8 x 8 pixels.
LAYOUTS = {"rgb": (256, 192), "vqvae": (13, 16)}


def save_vqvae(folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    sizes = {"downsampling": 2, "codebook_size": 13, "code_size": 4, "hidden_size": 8, "residual_size": 4}
    ImageGPTVQVAEModel(ImageGPTVQVAEConfig(**sizes)).save_pretrained(folder)


def recipe(folder: Path, kind: str, **changes) -> str:
    options = {"token_kind": kind, "num_colors": None, "augmentation": "none", "augmentation_padding": None}
    if kind == "vqvae":
        options["vqvae"] = "vq"
    name = write_recipe(folder, f"{kind}.yaml", **(options | changes))
    lines = (folder / name).read_text().splitlines()
    (folder / name).write_text("\n".join(line for line in lines if not line.endswith(": None")) + "\n")
    return name


@pytest.fixture(scope="module", params=list(LAYOUTS))
def finished(request, run, tmp_path_factory) -> tuple[str, Path]:
    """A kind, and a folder with a finished run on it in `out`."""
    folder = tmp_path_factory.mktemp(request.param)
    save_vqvae(folder / "vq")
    ended = run("pretrain", recipe(folder, request.param, sample_steps=6), cwd=folder)
    assert ended.status == 0, ended.stderr
    return request.param, folder


def test_a_run_leaves_a_checkpoint_that_makes_its_own_tokens(finished):
    kind, folder = finished
    out, (values, tokens) = folder / "out", LAYOUTS[kind]
    assert all(is_complete(out / name) for name in ("processor", "tokens", "model"))
    assert not (out / "palette").exists() and (out / "processor/quantization.png").is_file()
    model = AutoModelForCausalImageModeling.from_pretrained(out / "model")
    assert (model.config.token_kind, model.config.num_values, model.config.n_positions) == (kind, values, tokens)
    # The checkpoint is whole without the folder that the VQ-VAE came from.
    (folder / "vq").rename(folder / "gone") if (folder / "vq").exists() else None
    processor = IGPTImageProcessor.from_pretrained(out / "model")
    results = json.loads((out / "results.json").read_text())
    assert results["tokens"] == {
        "token_kind": kind,
        "token_hash": processor.token_hash,
        "grid": list(processor.grid),
        "num_channels": processor.num_channels,
        "num_values": values,
    }
    with Image.open(out / "samples/step-6.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 2
    images = processor.decode(model.generate(torch.full((2, 1), values))[:, 1:])
    assert [image.size for image in images] == [(8, 8)] * 2


def test_what_comes_after_takes_every_kind(finished, run):
    kind, folder = finished
    _, tokens = LAYOUTS[kind]
    ended = run("evaluate", "--model", "out/model", cwd=folder)
    assert ended.status == 0, ended.stderr
    metrics = json.loads(ended.stdout.splitlines()[-1])["metrics"]
    assert metrics["tokens_per_image"] == tokens
    assert 0 < metrics["nats_per_token"] < np.log(LAYOUTS[kind][0]) * 1.2
    of_run = json.loads((folder / "out/results.json").read_text())["metrics"]["validation"]
    for scores in (metrics, of_run):
        per_pixel = scores["nats_per_token"] * tokens / 64 / np.log(2)
        assert scores["bits_per_pixel"] == pytest.approx(per_pixel)
    for command in (
        ("sample", "--model", "out/model", "--num_samples", "2", "--num_completions", "2"),
        ("probe", "--model", "out/model", "--pixels"),
        ("finetune", "--model", "out/model", "--max_steps", "2", "--augmentation", "none", "--learning_rate", "1e-3"),
    ):
        ended = run(*command, cwd=folder)
        assert ended.status == 0, ended.stderr
    record = json.loads((folder / "out/tokens/results.json").read_text())
    assert record["arguments"]["tokens"]["token_kind"] == kind


def test_ready_tokens_and_weights_go_on_in_their_own_kind_only(finished, run):
    kind, folder = finished
    ended = run("pretrain", recipe(folder, kind, output_dir="again", tokens="out/tokens", max_images=None, vqvae=None),
                cwd=folder)  # fmt: skip
    assert ended.status == 0, ended.stderr
    ended = run("pretrain", recipe(folder, kind, output_dir="on", init_from="out/model", vqvae=None), cwd=folder)
    assert ended.status == 0, ended.stderr
    assert IGPTImageProcessor.from_pretrained(folder / "on/model").token_kind == kind
    ended = run(
        "pretrain", recipe(folder, "palette", output_dir="mixed", tokens="out/tokens", max_images=None), cwd=folder
    )
    assert (
        ended.status == 1
        and f"`token_kind` is 'palette', but the tokens of out/tokens are of the kind '{kind}'" in ended.cause
    )


def test_a_flag_for_another_kind_drops_the_recipes_number_of_colours(run, tmp_path):
    write_recipe(tmp_path, max_steps=1)
    ended = run("pretrain", "tiny.yaml", "--token_kind", "rgb", cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    assert IGPTImageProcessor.from_pretrained(tmp_path / "out/model").token_kind == "rgb"


def test_another_vqvae_of_the_same_name_is_another_run(finished, run, tmp_path):
    kind, folder = finished
    if kind != "vqvae":
        return
    work = Path(shutil.copytree(folder, tmp_path / "work"))
    save_vqvae(work / "vq", seed=1)
    for model in (work / "out/model", None):
        # Finished, and interrupted.
        ended = run("pretrain", recipe(work, kind), cwd=work)
        assert ended.status == 1 and "belongs to another run: token_hash was" in ended.cause, ended.stderr
        if model is not None:
            shutil.rmtree(model)


def test_tokens_that_the_weights_do_not_know_are_refused_before_images_are_read(finished, run):
    kind, folder = finished
    other = "rgb" if kind == "vqvae" else "palette"
    processor = IGPTImageProcessor(size=8, token_kind="rgb")
    if other == "palette":
        processor = IGPTImageProcessor(size=8, palette=np.eye(3) * 255)
    processor.save_pretrained(folder / "other")
    name = recipe(folder, other, output_dir="never", init_from="out/model", palette="other", vqvae=None)
    ended = run("pretrain", name, cwd=folder)
    assert ended.status == 1 and f"`init_from`: the tokens of out/model are of {kind}" in ended.cause, ended.stderr
    assert not (folder / "never").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "cause"),
    [
        ("rgb", {"num_colors": 17}, "`num_colors` has no effect where `token_kind` is 'rgb'"),
        ("rgb", {"vqvae": "vq"}, "`vqvae` has no effect where `token_kind` is 'rgb'"),
        ("vqvae", {"vqvae": None}, "`token_kind: vqvae` needs `vqvae`"),
        ("vqvae", {"vqvae": "nowhere"}, "`vqvae`: nowhere is no VQ-VAE"),
        ("vqvae", {"num_proc": 2}, "`num_proc` has no effect on codes"),
        ("vqvae", {"image_size": 7}, "`image_size` must be a multiple of 2, the pixels of a code's side, got 7 x 7"),
        ("vqvae", {"augmentation": "flip"}, "a VQ-VAE's codes of a moved image are others"),
    ],
)
def test_options_that_do_not_go_together(run, tmp_path, kind, changes, cause):
    save_vqvae(tmp_path / "vq")
    ended = run("pretrain", recipe(tmp_path, kind, **changes), cwd=tmp_path)
    assert ended.status == 1 and cause in ended.cause, ended.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sides", [[4, 4], [3, 10]], ids=str)
def test_any_grid_through_training_scoring_and_sampling(run, tmp_path, sides):
    name = recipe(tmp_path, "palette", image_size=sides, num_colors=17, max_images=10, max_steps=2, total_batch_size=2)
    ended = run("pretrain", name, cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    ended = run("evaluate", "--model", "out/model", cwd=tmp_path)
    assert json.loads(ended.stdout.splitlines()[-1])["metrics"]["tokens_per_image"] == sides[0] * sides[1], (
        ended.stderr
    )
    ended = run("sample", "--model", "out/model", "--num_samples", "1", "--num_completions", "1",
                "--completions_per_image", "1", cwd=tmp_path)  # fmt: skip
    assert ended.status == 0, ended.stderr
    with Image.open(tmp_path / "out/samples-final/samples.png") as picture:
        assert picture.width >= sides[1] and picture.height >= sides[0]


@pytest.mark.parametrize("kind", list(LAYOUTS))
def test_tokens_of_every_kind_are_made_first_and_trained_on_later(run, tmp_path, kind):
    save_vqvae(tmp_path / "vq")
    options = ["--token_kind", kind, "--image_size", "8", "--max_images", "40", "--output_dir", "data/tokens"]
    options += ["--vqvae", "vq"] if kind == "vqvae" else []
    for _ in range(2):
        ended = run("tokenize_dataset", "--dataset_name", "digits", *options, cwd=tmp_path)
        assert ended.status == 0, ended.stderr
    ended = run("pretrain", recipe(tmp_path, kind, tokens="data/tokens", max_images=None, vqvae=None), cwd=tmp_path)
    assert ended.status == 0, ended.stderr
    processor = IGPTImageProcessor.from_pretrained(tmp_path / "data/processor")
    assert processor.token_hash == IGPTImageProcessor.from_pretrained(tmp_path / "out/model").token_hash
    ended = run("tokenize_dataset", "--token_kind", kind, "--palette", "data/processor", cwd=tmp_path)
    assert ended.status == 1 and "`palette` has no effect where `token_kind` is" in ended.cause
