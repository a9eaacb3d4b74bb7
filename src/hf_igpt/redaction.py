"""Takes secrets out of whatever is about to be written or printed."""

import itertools
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any


MASK = "***"
_SECRET_NAME = r"(?:token|secret|passw(?:or)?d|api[_-]?key|access[_-]?key|credentials?)"
# `nats_per_token=2.05` and `use_start_token=true` are no secrets: what follows has to be more than a number or a flag.
_NO_SECRET = r"(?!(?:[-+\d.eE]+|true|false|none|null)(?![^\s\"',;&)}\]]))"
_VALUE = rf"(?:'[^']*'|\"[^\"]*\"|{_NO_SECRET}[^\s\"',;&)}}\]]+)"
# Tokens that are known by their beginning: Hugging Face, W&B, GitHub, OpenAI and their like.
_KNOWN = r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{6,}|wandb_v\d_\w+|gh[a-z]_\w{16,}|github_pat_\w+|sk-[\w-]{16,})"
_PATTERNS = [
    (re.compile(_KNOWN), MASK),
    (re.compile(r"(://)[^\s/@\"']+@"), rf"\1{MASK}@"),
    (re.compile(r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?(?:(?:bearer|basic|token)\s+)?)[^\s\"',;]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)(\bbearer\s+)[\w.~+/=-]{6,}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)(--[\w-]*{_SECRET_NAME}\s+)(?!-){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)({_SECRET_NAME}[\"']?\s*[=:]\s*){_VALUE}"), rf"\1{MASK}"),
]
_SECRET_KEY = re.compile(rf"(?i){_SECRET_NAME}$")
_SHORTEST = 6
# In bytes of any file the short tokens of `_KNOWN` would be found by chance: real ones are longer.
_KNOWN_BYTES = re.compile(
    rb"\b(?:(?:hf|api_org)_[A-Za-z0-9]{30,}|wandb_v\d_\w{20,}|gh[a-z]_\w{30,}|github_pat_\w{20,}"
    rb"|sk-[\w-]{30,})"
)
_ADDRESS_BYTES = re.compile(rb"https?://[^\s/@:\"']{1,64}:[^\s/@\"']{3,128}@")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if _SECRET_KEY.search(name) and len(value) >= _SHORTEST}


def _environment_secrets() -> list[str]:
    return sorted(set(_environment().values()), key=len, reverse=True)


def redact(value: Any) -> Any:
    """Masks secrets in a text, or in every text of nested lists and mappings; other values pass unchanged.

    Masked are: tokens of the Hub, W&B and their like; what follows `token=`, `--hub_token`, `password:` or
    `Authorization:`; names and passwords in addresses; values of keys named after a secret; and the values of
    environment variables such as HF_TOKEN, wherever they stand. A W&B key of 40 hexadecimal digits can't be told from
    a commit, so it is masked only in those places.
    """
    return _redact(value, _environment_secrets())


def find_secrets(data: bytes, known: Iterable[str] = ()) -> list[str]:
    """
    What kinds of secrets a file's bytes hold, in words: tokens known by their beginning, values of environment
    variables named after a secret, `known` ones, and passwords in addresses. Empty for none.
    """
    found = [f"the value of {name}" for name, value in _environment().items() if value.encode() in data]
    found += ["a token in use" for secret in known if len(secret) >= _SHORTEST and secret.encode() in data]
    found += ["a token" for _ in itertools.islice(_KNOWN_BYTES.finditer(data), 1)]
    found += ["an address with a password" for _ in itertools.islice(_ADDRESS_BYTES.finditer(data), 1)]
    return found


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        for pattern, replacement in _PATTERNS:
            value = pattern.sub(replacement, value)
        return value
    if isinstance(value, Mapping):
        return {
            _redact(key, secrets): MASK if _is_secret(key, item) else _redact(item, secrets)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_redact(item, secrets) for item in value]
    return value


def _is_secret(key: Any, item: Any) -> bool:
    return isinstance(key, str) and isinstance(item, str) and item != "" and _SECRET_KEY.search(key) is not None
