"""What goes up is an explicit list, made anew by this package, and a card whose figures all have their JSON."""

import json
import re
import shutil

import datasets
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import code_processor, randomize_, tiny_causal, tiny_config, tiny_masked

from hf_igpt import IGPTImageProcessor, ImageGPTForImageClassification, ImageGPTModel
from hf_igpt.data.sources import ImageSource
from hf_igpt.data.token_store import load_tokens, save_tokens
from hf_igpt.data.tokenization import tokenize
from hf_igpt.hub.card_facts import CardFacts, facts_of_run
from hf_igpt.hub.card_text import code, escaped, plain_line, table
from hf_igpt.hub.evidence import Result
from hf_igpt.hub.model_cards import model_card
from hf_igpt.hub.releases import CardOptions, stage_model, stage_tokens
from hf_igpt.results import write_results
from hf_igpt.storage import staged_folder
from hf_igpt.weights import weights_digest


NAME = "someone/tiny"
PAPER = "https://proceedings.mlr.press/v119/chen20s.html"


def processor_for(model) -> IGPTImageProcessor:
    height, width = model.config.grid
    palette = np.random.default_rng(0).integers(0, 256, (model.config.num_values, 3))
    return IGPTImageProcessor(size={"height": height, "width": width}, palette=palette)


def save_run(folder, model=None, processor=None):
    """A run's folder with a model and results about it."""
    model = model or randomize_(tiny_causal())
    with staged_folder(folder / "model") as staged:
        model.save_pretrained(staged)
        (processor or processor_for(model)).save_pretrained(staged)
    digest = weights_digest(model)
    write_results(
        folder,
        metrics={
            "optimizer_steps": 12,
            "images_seen": 345,
            "parameters": model.num_parameters(),
            "training_flops": 6.5e9,
            "validation": {"nats_per_token": 1.75, "nats_per_token_standard_error": 0.0625},
        },
        arguments={"objective": "next_pixel", "dataset_name": "local/images"},
        seeds={"seed": 3},
        dataset={"name": "local/images", "revision": None, "notes": ["Validation is part of train."], "hub": None},
        log_history=[{"step": 1, "loss": 2.0}, {"step": 12, "loss": 1.5}],
        model_sha256=digest,
        model_tags=["trackio", "trackio:https://example.org/space"],
    )
    write_results(
        folder / "evaluation-test",
        metrics={"nats_per_token": 1.25, "nats_per_token_standard_error": 0.03125, "bits_per_pixel": 1.8034},
        arguments={"split": "test"},
        model_sha256=digest,
    )
    write_results(
        folder / "evaluation-other",
        metrics={"nats_per_token": 9.875},
        arguments={"split": "test"},
        model_sha256="0" * 64,
    )
    return folder / "model"


@pytest.fixture
def model_folder(tmp_path):
    (tmp_path / "run" / "evaluation-test").mkdir(parents=True)
    (tmp_path / "run" / "evaluation-other").mkdir()
    return save_run(tmp_path / "run")


@pytest.fixture
def release(tmp_path):
    (tmp_path / "release").mkdir()
    return tmp_path / "release"


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_only_what_belongs_to_a_release_is_in_it(model_folder, release):
    for planted in (".env", "notebook.ipynb", "training_args.bin", "data.csv"):
        (model_folder.parent / planted).write_text("private")
    stage_model(model_folder, release, NAME)
    rest = {name for name in names(release) if not re.fullmatch(r"\w+_igpt\w*\.py", name)}
    assert rest == {
        "README.md",
        "config.json",
        "generation_config.json",
        "images/loss.png",
        "images/palette.png",
        "model.safetensors",
        "preprocessor_config.json",
        "results/evaluation-test.json",
        "results/pretraining.json",
    }
    before, after = load_file(model_folder / "model.safetensors"), load_file(release / "model.safetensors")
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    assert json.loads((release / "config.json").read_text())["auto_map"]


@pytest.mark.parametrize("head", ["causal", "masked", "classifier", "backbone"])
def test_every_head_is_published_as_what_it_is(tmp_path, release, head):
    model = {
        "causal": tiny_causal,
        "masked": tiny_masked,
        "classifier": lambda: ImageGPTForImageClassification(tiny_config(num_labels=3)),
        "backbone": lambda: ImageGPTModel(tiny_config()),
    }[head]()
    folder = tmp_path / "model"
    randomize_(model).save_pretrained(folder)
    processor_for(model).save_pretrained(folder)
    stage_model(folder, release, NAME)
    assert json.loads((release / "config.json").read_text())["architectures"] == [type(model).__name__]
    card = ModelCard.load(release / "README.md")
    tags = {"classifier": "image-classification", "backbone": "image-feature-extraction"}
    assert card.data.pipeline_tag == tags.get(head, "unconditional-image-generation")
    assert "results here: data, command and cost are not known" in card.text


def test_metadata_and_figures_come_from_the_results(model_folder, release):
    stage_model(model_folder, release, NAME, options=CardOptions("apache-2.0", tags=["mine"]))
    card = ModelCard.load(release / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.datasets is None  # a local folder is no data set on the Hub
    assert {"mine", "trackio", "trackio:https://example.org/space", "hf-igpt"} <= set(card.data.tags)
    found = {(r.metric_type, r.dataset_split): r.metric_value for r in card.data.eval_results}
    assert found == {
        ("nats_per_token", "validation"): 1.75,
        ("nats_per_token", "test"): 1.25,
        ("bits_per_pixel", "test"): 1.8034,
    }
    assert "9.875" not in card.content
    for text in (
        "**1.250 ± 0.031** nats per token",
        "345 images seen",
        "6.5e+09 FLOP",
        "Validation is part of train.",
    ):
        assert text in card.text
    links = re.findall(r"\]\(([^)]+)\)", card.text)
    assert links and all(link.startswith("http") or (release / link).is_file() for link in links)


def test_name_of_a_local_copy_can_be_given(model_folder, release):
    stage_model(model_folder, release, NAME, options=CardOptions(dataset="acme/images"))
    card = ModelCard.load(release / "README.md")
    assert card.data.datasets == ["acme/images"]
    assert {result.dataset_type for result in card.data.eval_results} == {"acme/images"}


def test_card_lists_the_code_that_runs_with_its_hashes(model_folder, release):
    import hashlib

    stage_model(model_folder, release, NAME)
    text = (release / "README.md").read_text()
    code_names = {name for name in names(release) if name.endswith(".py")}
    assert {"modeling_igpt.py", "configuration_igpt.py"} <= code_names
    for name in code_names:
        assert f"| `{name}` | `{hashlib.sha256((release / name).read_bytes()).hexdigest()}` |" in text
    assert 'revision="COMMIT"' in text


def test_code_and_map_of_others_are_not_passed_on(model_folder, release):
    folder = model_folder.parent / "foreign"
    shutil.copytree(model_folder, folder)
    (folder / "manifest.json").unlink()
    (folder / "modeling_igpt.py").write_text("raise SystemExit('executed')")
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model", "AutoConfig": "someone/else--evil.Config"}
    config["custom_pipelines"]["theirs"] = {"impl": "evil.Pipeline", "pt": ["AutoModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    stage_model(folder, release, NAME)
    assert "evil.py" not in names(release)
    assert "executed" not in (release / "modeling_igpt.py").read_text()
    assert "evil" not in (release / "config.json").read_text()


# Checkpoints of a VQ-VAE's codes


def write_vqvae_results(folder, codes_hash: str, psnr: float):
    """What train_vqvae leaves, as far as a card looks at it."""
    folder.mkdir()
    write_results(
        folder,
        metrics={
            "optimizer_steps": 7,
            "images_seen": 77,
            "training_flops": 1.5e6,
            "validation": {"psnr_db": 31.25},
            "test": {"psnr_db": psnr},
        },
        arguments={"dataset_name": "other/images"},
        model_sha256="7" * 64,
        codes_hash=codes_hash,
    )
    return folder


@pytest.fixture
def codes_folder(tmp_path):
    (tmp_path / "run" / "evaluation-test").mkdir(parents=True)
    (tmp_path / "run" / "evaluation-other").mkdir()
    processor = code_processor(6, 8)
    return save_run(tmp_path / "run", randomize_(tiny_causal(token_kind="vqvae")), processor), processor.token_hash


def test_the_card_of_codes_says_what_they_stand_for(codes_folder, release):
    folder, token_hash = codes_folder
    write_vqvae_results(folder.parent / "a-vqvae", token_hash, 28.5)
    stage_model(folder, release, NAME)
    card = ModelCard.load(release / "README.md")
    for text in (
        "predicts every code of an image",
        "3x4 cells of 10 codes of a VQ-VAE, each code for 2x2 of the 6x8 pixels of an image",
        f"VQ-VAE `{token_hash}`: 10 codes, which show its test images with a PSNR of 28.5 dB and its validation ",
        "It has no bits/dim of the RGB image. VQ-VAE codes do not say what the pixels are",
        # Of this checkpoint's own run, though the VQ-VAE's comes first by name.
        "345 images seen",
    ):
        assert text in card.text
    assert "77 images seen" not in card.text and "colour" not in card.text
    assert not re.search("palette(?!_igpt)", card.text.lower()) and "images/palette.png" not in names(release)
    assert (release / "results/a-vqvae.json").is_file()
    assert {r.metric_value for r in card.data.eval_results} == {1.75, 1.25, 1.8034}


def test_results_of_another_vqvae_stay_out(codes_folder, release, tmp_path):
    folder, token_hash = codes_folder
    other = write_vqvae_results(folder.parent / "vqvae", "0" * 16, 12.5)
    with pytest.raises(ValueError, match=f"VQ-VAE with the hash {'0' * 16}, and the tokens of .* have {token_hash}"):
        stage_model(folder, tmp_path / "refused", NAME, results=[other])
    named = write_vqvae_results(tmp_path / "elsewhere", token_hash, 28.5)
    stage_model(folder, release, NAME, results=[named])
    text = (release / "README.md").read_text()
    assert "PSNR of 28.5 dB" in text and "12.5" not in text


def test_a_vqvae_is_published_with_the_checkpoint_that_uses_it(tmp_path, release):
    code_processor(6, 8).vqvae.save_pretrained(tmp_path / "vqvae")
    with pytest.raises(ValueError, match=r"is a VQ-VAE. It is published with every checkpoint .*\.push_to_hub"):
        stage_model(tmp_path / "vqvae", release, NAME)
    assert not names(release)


def test_a_run_of_codes_tells_their_size_without_its_vqvae():
    content = facts_with("word").results[0].content
    tokens = {"token_kind": "vqvae", "token_hash": "abcd", "grid": [2, 4], "num_channels": 1, "num_values": 9}
    arguments = {"token_kind": "vqvae", "vqvae": "gone", "image_size": [8, 16], "objective": "masked"}
    metrics = content["metrics"] | {"parameters": 5}
    run = Result("pretraining", "x", content | {"arguments": arguments, "tokens": tokens, "metrics": metrics})
    facts = facts_of_run(NAME, [run])
    assert facts.tokens == "2x4 cells of 9 codes of a VQ-VAE, each code for 4x4 of the 8x16 pixels of an image"


@pytest.mark.parametrize("kind", ["palette", "vqvae"])
def test_a_card_speaks_of_tokens_where_any_kind_is_meant(kind):
    metrics = {"nats_per_token": 1.0, "unigram_nats_per_token": 2.0, "uniform_nats_per_token": 3.0}
    content = facts_with("word").results[0].content | {"metrics": metrics, "arguments": {"split": "test"}}
    shape = {"layers": 1, "width": 2, "heads": 1, "parameters": 3, "grid": (4, 4), "cell_size": 2, "values": 5}
    text = model_card(CardFacts(NAME, "masked", shape, kind, "abcd", [Result("likelihood", "x", content)])).text
    assert "a model of the tokens' frequencies" in text and "all tokens equally likely" in text
    assert ("predicts hidden codes" in text) == (kind == "vqvae") == ("no bits/dim" in text)


def test_results_of_other_weights_are_refused_by_name(model_folder, release):
    with pytest.raises(ValueError, match="is about weights with SHA-256 0000"):
        stage_model(model_folder, release, NAME, results=[model_folder.parent / "evaluation-other"])


def test_weights_that_are_not_finite_are_refused(model_folder, release):
    weights = load_file(model_folder / "model.safetensors")
    weights["lm_head.weight"][0, 0] = float("nan")
    save_file(weights, model_folder / "model.safetensors", metadata={"format": "pt"})
    (model_folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"1 of the \d+ numbers in lm_head.weight"):
        stage_model(model_folder, release, NAME)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut"), "has 3 bytes"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "preprocessor_config.json"),
    ],
)
def test_a_damaged_checkpoint_is_refused(model_folder, release, damage, message):
    damage(model_folder)
    with pytest.raises(ValueError, match=message):
        stage_model(model_folder, release, NAME)


# Texts with markup in them

AWKWARD = st.text(max_size=60) | st.sampled_from(
    ["a|b", "`x`", "``", "---\nlicense: mit", "<script>alert(1)</script>", "[x](http://y)", "# head", "1. one", "*b*"]
)


def facts_with(text: str) -> CardFacts:
    content = {
        "schema": "hf_igpt.results",
        "command": f"hf-igpt pretrain {text}",
        "commit": None,
        "hardware": {"cpu": text, "cores": 2, "gpus": []},
        "versions": {"torch": text},
        "seeds": {"seed": 0},
        "arguments": {"dataset_name": text},
        "dataset": {"name": text, "notes": [text], "hub": None, "revision": text},
        "metrics": {
            "optimizer_steps": 1,
            "images_seen": 2,
            "training_flops": 3.0,
            "validation": {"nats_per_token": 1.5},
        },
    }
    shape = {"layers": 1, "width": 2, "heads": 1, "parameters": 3, "grid": (4, 4), "cell_size": 1, "values": 5}
    results = [Result("pretraining", text or "x", content)]
    return CardFacts(
        NAME, "next_pixel", shape, "palette", "abcd", results, pictures={"images/p.png": text}, tags=[text]
    )


@settings(max_examples=150, deadline=None)
@given(AWKWARD)
def test_no_text_of_a_run_becomes_markup_metadata_or_html(text):
    card = str(model_card(facts_with(text)))
    header = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1]
    metadata = yaml.safe_load(header)
    assert set(metadata) <= {"library_name", "pipeline_tag", "tags", "model-index"}
    assert ModelCard(card).data.tags == metadata["tags"]
    shown = plain_line(text)
    assert shown in metadata["tags"] or not shown
    blocks = blocks_of(card)
    assert [token.type for token in blocks] == [token.type for token in blocks_of(str(model_card(facts_with("word"))))]
    inline = [child for token in blocks for child in token.children or ()]
    assert {token.content for token in inline if token.type == "html_inline"} <= {"<code>", "</code>"}
    addresses = [token.attrs.get("href") or token.attrs.get("src") for token in inline if token.attrs]
    assert {address for address in addresses if "://" in address} == {PAPER}
    if shown:
        assert shown in "".join(token.content for token in inline).replace("\N{NO-BREAK SPACE}", " ")


def blocks_of(card: str) -> list:
    """The card's body as a forge reads it: tables are on, and so are links without brackets."""
    return MarkdownIt("gfm-like").parse(card[card.index("\n# ") :])


@given(AWKWARD)
def test_a_code_span_shows_its_text(text):
    (block,) = [token for token in MarkdownIt("gfm-like").parse(f"so: {code(text)}.") if token.type == "inline"]
    shown = "".join(token.content for token in block.children if token.type != "html_inline")
    assert shown == f"so: {plain_line(text)}."


def test_a_table_keeps_its_columns():
    tokens = MarkdownIt("gfm-like").parse(table(("a", "b"), [(escaped("x|y"), code("p|q")), ("1", "2")]))
    assert sum(token.type == "td_open" for token in tokens) == 4


# Tokenized data sets


def tokenized(folder, processor):
    """Six images as tokens in `folder/tokens`."""
    rng = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)) for _ in range(6)]}
    split = datasets.Dataset.from_dict(rows | {"label": [0, 1] * 3}, features=features)
    hub = {"name": "acme/images", "revision": "5" * 40}
    source = ImageSource("acme/images", {"train": split, "test": split.select([0, 1])}, "image", "label", hub=hub)
    save_tokens(tokenize(source, processor), folder / "tokens")
    return folder / "tokens"


@pytest.fixture
def tokens_folder(tmp_path):
    palette = np.random.default_rng(1).integers(0, 256, (7, 3))
    processor = IGPTImageProcessor(size=4, palette=palette)
    processor.save_pretrained(tmp_path / "made" / "palette")
    return tokenized(tmp_path / "made", processor)


@pytest.mark.parametrize("kind", ["palette", "rgb", "vqvae"])
def test_the_card_of_tokens_shows_a_palette_only_where_there_is_one(tmp_path, release, kind):
    size = {"height": 6, "width": 8}
    processor = {
        "palette": lambda: IGPTImageProcessor(size, palette=np.arange(21).reshape(7, 3)),
        "rgb": lambda: IGPTImageProcessor(size, token_kind="rgb"),
        "vqvae": lambda: code_processor(6, 8),
    }[kind]()
    processor.save_pretrained(tmp_path / "made" / "any")
    stage_tokens(tokenized(tmp_path / "made", processor), tmp_path / "made" / "any", release, NAME)
    text = (release / "README.md").read_text()
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert shown == (["images/palette.png"] if kind == "palette" else [])
    assert all((release / path).is_file() for path in shown)
    assert ("A code stands for 2x2 of the 6x8 pixels of an image." in text) == (kind == "vqvae")
    assert ("palette" in text.lower()) == (kind == "palette")


def test_tokens_are_published_with_palette_and_card(tokens_folder, release):
    stage_tokens(tokens_folder, tokens_folder.parent / "palette", release, NAME, CardOptions("mit"))
    card = DatasetCard.load(release / "README.md")
    assert card.data.license == "mit"
    assert card.data.source_datasets == ["acme/images"]
    processor = IGPTImageProcessor.from_pretrained(release / "palette")
    for text in ("acme/images", "5" * 40, "4x4 cells of 7 colours", processor.token_hash):
        assert text in card.text
    loaded = datasets.load_dataset(str(release), cache_dir=str(release.parent / "cache"))
    expected = load_tokens(tokens_folder)
    assert {name: split["input_ids"] for name, split in loaded.items()} == {
        name: split["input_ids"] for name, split in expected.items()
    }
    assert load_tokens(release / "tokens")["train"].features == expected["train"].features


def test_tokens_of_another_palette_are_refused(tokens_folder, release):
    other = IGPTImageProcessor(size=4, palette=np.arange(21).reshape(7, 3))
    other.save_pretrained(tokens_folder.parent / "other")
    with pytest.raises(ValueError, match="token_hash"):
        stage_tokens(tokens_folder, tokens_folder.parent / "other", release, NAME)


def test_files_beside_tokens_are_refused(tokens_folder, release):
    (tokens_folder / ".env").write_text("SECRET=1")
    with pytest.raises(ValueError, match=r"\.env"):
        stage_tokens(tokens_folder, tokens_folder.parent / "palette", release, NAME)
