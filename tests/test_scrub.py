"""Secrets leave a text, and nothing else does."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.scrub import HIDDEN, scrubbed

WORD = st.text(string.ascii_letters + string.digits + "-_.~%", min_size=1, max_size=20)


@given(user=WORD, password=st.text(string.ascii_letters + string.digits + "-_.~%:@", min_size=1), host=WORD, path=WORD)
def test_users_and_passwords_leave_addresses(user: str, password: str, host: str, path: str) -> None:
    text = f"see postgresql://{user}:{password}@{host}:5432/{path} for more"
    assert scrubbed(text) == f"see postgresql://{host}:5432/{path} for more"


@given(secret=st.text(string.ascii_letters + string.digits + "-_.~%+/=", min_size=1), name=WORD)
def test_tokens_leave_queries_and_headers(secret: str, name: str) -> None:
    assert scrubbed(f"https://a.example/x?page=2&access_token={secret}&n=1") == (
        f"https://a.example/x?page=2&access_token={HIDDEN}&n=1"
    )
    assert scrubbed(f"{{'Authorization': 'Bearer {secret}'}}") == f"{{'Authorization': 'Bearer {HIDDEN}'}}"


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 65536, key=value, secret sauce",
        "write to me@example.com or see https://example.com/a@b?page=2",
        "pretrain:  45%|####      | 90/200 [00:10<00:12, 9.0step/s, loss 3.2 |g| 0.9]",
        "models:/transformer-translation@champion",
        "git@example.com:me/repository.git",
    ],
)
def test_all_else_stays(text: str) -> None:
    assert scrubbed(text) == text


def test_values_of_secret_variables_leave_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdef/123")
    monkeypatch.setenv("PIPELINE_WEBHOOK", "https://chat.example/hook/xyz")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallel")
    monkeypatch.setenv("SHORT_KEY", "the")
    text = "abcdef/123 went to https://chat.example/hook/xyz the parallel way, abcdef%2F123"
    assert scrubbed(text) == f"{HIDDEN} went to {HIDDEN} the parallel way, {HIDDEN}"
