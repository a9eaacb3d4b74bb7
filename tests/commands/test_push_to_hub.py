"""From images to a repository and back, by the commands, over a real connection to a Hub on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny_recipe import write_images, write_recipe

from hf_igpt.commands.publishing import publishing_target
from hf_igpt.training.arguments import PretrainArguments


sys.path.append(str(Path(__file__).parents[1] / "hub"))
from hub_server import Fault, HubServer  # noqa: E402


MODEL, TOKENS = "someone/igpt-tiny", "someone/tiny-tokens"
CANARY = "canary-that-nobody-may-see"
# Loads what was published with its own code, at a pinned commit, where the package can't be imported.
LOADING = """
import importlib.abc, sys
class WithoutPackage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hf_igpt":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, WithoutPackage())
from transformers import AutoImageProcessor, AutoModelForCausalLM
pinned = {"revision": sys.argv[2], "trust_remote_code": True}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], **pinned)
processor = AutoImageProcessor.from_pretrained(sys.argv[1], **pinned)
print(type(model).__module__, processor.decode(model.generate(num_return_sequences=2)[:, 1:])[0].size)
"""


class Place:
    """A folder, a Hub, and commands that run there in processes of their own."""

    def __init__(self, folder: Path, hub: HubServer):
        self.folder, self.hub = folder, hub
        self.said = ""
        write_recipe(folder, sample_steps=5, max_steps=5)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, arguments)]
        variables = os.environ | self.hub.environment(self.folder / "home") | {"WANDB_API_KEY": CANARY} | environment
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True)
        self.said += done.stdout + done.stderr
        return done

    def command(self, name: str, *arguments: str, **environment: str) -> dict:
        done = self.run("-m", f"hf_igpt.commands.{name}", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def cause(self, name: str, *arguments: str, **environment: str) -> str:
        """The last line of a command that has to fail."""
        done = self.run("-m", f"hf_igpt.commands.{name}", *arguments, **environment)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    def files(self, name: str) -> dict[str, bytes]:
        return self.hub.repos[name].files


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with HubServer() as hub:
        yield Place(tmp_path_factory.mktemp("place"), hub)


@pytest.fixture(scope="module")
def trained(place):
    """A run that published itself."""
    return place.command("pretrain", "tiny.yaml", "--push_to_hub", "--hub_model_id", MODEL, "--hub_license", "mit")


@pytest.fixture(scope="module")
def pushed(place, trained):
    """The same model, scored and sampled since."""
    place.command("evaluate", "--model", "out/model", "--split", "validation")
    place.command("sample", "--model", "out/model", "--num_samples", "4", "--num_completions", "0")
    return place.command("push_to_hub", "--model", "out/model", "--repo_id", MODEL, "--license", "mit")


def test_a_run_publishes_itself(place, trained):
    commits = [commit for commit in place.hub.repos[f"models/{MODEL}"].commits if "model.safetensors" in commit.files]
    files = commits[0].files
    assert {"README.md", "config.json", "modeling_igpt.py", "results/pretraining.json", "images/samples.png"} <= set(
        files
    )
    published = json.loads(files["results/pretraining.json"].content)
    assert published == trained
    assert b"license: mit" in files["README.md"].content


def test_a_later_push_adds_what_was_measured_and_a_repeated_one_nothing(place, pushed):
    files = place.files(f"models/{MODEL}")
    measured = json.loads(files["results/evaluation-validation.json"])["metrics"]["nats_per_token"]
    assert f"**{measured:.3f}".encode() in files["README.md"]
    assert pushed["metrics"]["is_new_commit"] is True
    again = place.command("push_to_hub", "--model", "out/model", "--repo_id", MODEL, "--license", "mit")
    assert again["metrics"]["is_new_commit"] is False
    assert again["metrics"]["commit"] == pushed["metrics"]["commit"]


def test_it_loads_at_its_commit_where_the_package_is_not_installed(place, pushed):
    done = place.run("-c", LOADING, MODEL, pushed["metrics"]["commit"], HF_TOKEN="")
    assert done.returncode == 0, done.stderr
    module, size = done.stdout.splitlines()[-1].split(" ", 1)
    assert module.startswith("transformers_modules.")
    assert size == "(8, 8)"


def test_tokens_are_published_and_trained_on(place, trained):
    place.command("push_to_hub", "--tokens", "out/tokens", "--repo_id", TOKENS, "--dataset", "acme/digits")
    assert b"source_datasets:\n- acme/digits" in place.files(f"datasets/{TOKENS}")["README.md"]
    options = ("--output_dir", "again", "--tokens", TOKENS, "--max_images", "null")
    again = place.command("pretrain", "tiny.yaml", *options)
    assert again["tokens"]["token_hash"] == trained["tokens"]["token_hash"]
    assert again["dataset"] == trained["dataset"]
    assert again["model_sha256"] == trained["model_sha256"]
    place.command("evaluate", "--model", "again/model", "--tokens", TOKENS, "--split", "validation")


def test_images_from_the_hub_are_named_with_their_commit(place):
    name = "someone/images"
    write_images(place.folder, 20)
    content = (place.folder / "images" / "train.parquet").read_bytes()
    repository = place.hub.add_repo(f"datasets/{name}", {"data/train-00000-of-00001.parquet": content})
    options = ("--output_dir", "from_hub", "--max_steps", "1", "--sample_steps", "0", "--validation_fraction", "0.2")
    done = place.command("pretrain", "tiny.yaml", "--dataset_name", name, *options)
    assert done["dataset"]["hub"] == {"name": name, "revision": repository.head}
    place.command("push_to_hub", "--model", "from_hub/model", "--repo_id", "someone/from-hub")
    card = ModelCard(place.files("models/someone/from-hub")["README.md"].decode())
    assert card.data.datasets == [name]
    assert {result.dataset_revision for result in card.data.eval_results} == {repository.head}


def test_a_checkpoint_of_the_training_loads_by_itself_too(place, trained):
    done = place.run("-c", LOADING, "out/checkpoint-5", "main")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("transformers_modules.")


def test_a_push_that_was_cut_is_said_and_completed_by_the_same_command(place, trained):
    name = "someone/cut"
    place.hub.fail(Fault("refuse", f"POST .*{name}/commit/", times=5))
    options = ("--model", "out/model", "--repo_id", name, "--output_dir", "cut")
    cause = place.cause("push_to_hub", *options)
    assert "run the same command again" in cause
    assert set(place.files(f"models/{name}")) <= {".gitattributes"}
    assert not (place.folder / "cut" / "results.json").exists()
    done = place.command("push_to_hub", *options)
    assert len(done["metrics"]["files"]) > 10
    assert sum("config.json" in commit.files for commit in place.hub.repos[f"models/{name}"].commits) == 1


def test_that_it_may_not_publish_is_said_before_training(place):
    options = ("--output_dir", "never", "--push_to_hub", "--hub_model_id", "strangers/model")
    assert "refused" in place.cause("pretrain", "tiny.yaml", *options)
    assert not (place.folder / "never").exists()


@pytest.mark.parametrize(
    ("options", "message"), [({}, "needs `hub_model_id`"), ({"hub_model_id": "nobody"}, "OWNER/NAME")]
)
def test_a_name_is_needed_to_publish(options, message):
    with pytest.raises(ValueError, match=message):
        publishing_target(PretrainArguments(push_to_hub=True, **options), is_main_process=True)


def test_a_dry_run_uploads_nothing(place, trained):
    before = len(place.hub.requests)
    options = ("--model", "out/model", "--repo_id", "someone/dry", "--output_dir", "dry", "--dry_run")
    assert place.command("push_to_hub", *options, HF_TOKEN="")["metrics"] == {"published": False}
    assert (place.folder / "dry" / "files" / "README.md").is_file()
    assert len(place.hub.requests) == before


def test_no_secret_got_anywhere(place, pushed):
    secrets = [place.hub.token.encode(), CANARY.encode()]
    files = [path for path in place.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    for path in files:
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path
    received = place.hub.received()
    assert b"modeling_igpt" in received
    assert not any(secret in received for secret in secrets)
    assert not any(secret.decode() in place.said for secret in secrets)
