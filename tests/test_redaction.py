import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_igpt.redaction import redact


CANARY = "canary7Zq9"


@pytest.mark.parametrize(
    "text",
    [
        f"--hub_token {CANARY}",
        f"--hub-token={CANARY}",
        f"--hub_token '{CANARY} and more'",
        f"--wandb_api_key {CANARY} --seed 1",
        f"token={CANARY}&revision=main",
        f"HF_TOKEN={CANARY} python train.py",
        f"{{'password': '{CANARY}'}}",
        f'{{"api_key": "{CANARY}"}}',
        f"password: {CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"authorization: Basic {CANARY}==",
        f'"Authorization": "{CANARY}"',
        f"got 401 for bearer {CANARY}",
        f"https://user:{CANARY}@example.org/data",
        f"https://{CANARY}@example.org/data.git",
        f"s3://key:{CANARY}@bucket",
        f"logged in with hf_{CANARY}",
        f"hf_{CANARY}, and so on",
        f"wandb_v1_{CANARY}",
        f"ghp_{CANARY}{CANARY}",
    ],
)
def test_secret_is_masked(text):
    assert CANARY not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "nats_per_token=2.05",
        "nats_per_token: 2.0512, bits_per_dim: 1e-3",
        '{"nats_per_token": 2.05, "use_start_token": true}',
        "--use_start_token true --bos_token None --num_key_value_heads 4",
        "--max_token --seed 1",
        "tokens: 1024; vocab_size=513",
        "revision 0123456789abcdef0123456789abcdef01234567",
        "https://example.org/a@b",
        "file:///tmp/run [1] (ü)",
        "hf_igpt.training.trainer",
        "hf-igpt pretrain digits --output_dir outputs/digits",
        "the author is at home",
    ],
)
def test_other_text_is_kept(text):
    assert redact(text) == text


VARIABLES = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"]


@pytest.mark.parametrize("name", VARIABLES)
def test_value_of_a_secret_variable_is_masked_wherever_it_stands(monkeypatch, name):
    monkeypatch.setenv(name, CANARY)
    assert redact(f"/tmp/{CANARY}/x and x{CANARY}x") == "/tmp/***/x and x***x"


def test_short_values_and_other_variables_are_kept(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "none")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-ish")
    assert redact("none is false-ish") == "none is false-ish"


def test_nested_values():
    value = {
        "hub_token": CANARY,
        "seed": 1,
        "tokens": CANARY,
        "inner": [{"api_key": CANARY, "loss": 0.5}, ("--token=" + CANARY, None)],
        f"token={CANARY}": True,
        "wandb_password": "",
    }
    assert redact(value) == {
        "hub_token": "***",
        "seed": 1,
        "tokens": CANARY,
        "inner": [{"api_key": "***", "loss": 0.5}, ["--token=***", None]],
        "token=***": True,
        "wandb_password": "",
    }


@given(st.text())
def test_redacting_twice_changes_nothing_more(text):
    assert redact(redact(text)) == redact(text)
