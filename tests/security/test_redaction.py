"""No secret in text: whatever a URL, a connection string or a header looks like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.core import failures
from tuner.core.redaction import redacted, redacted_url

SECRET = "Zq8vK3xW9"
NAMES = st.from_regex(r"[a-z][a-z0-9_.-]{0,12}", fullmatch=True)
NOISE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), max_size=8)
PASSWORDS = st.builds(lambda a, b: f"{a}{SECRET}{b}", NOISE, NOISE)
PATHS = st.from_regex(r"(/[a-z0-9]{0,8}){0,3}", fullmatch=True)
PORTS = st.just("") | st.integers(1, 65535).map(":{}".format)
DATABASES = st.sampled_from(["postgresql", "postgresql+psycopg", "mysql+pymysql", "postgres"])
AROUND = st.sampled_from(["{}", "'{}'", "cannot open {}; start it", "({})", "a@b {} c@d", "x={}"])


@pytest.mark.slow
@given(DATABASES, NAMES, PASSWORDS, NAMES, PORTS, PATHS, AROUND)
def test_a_password_in_a_database_url_is_hidden(scheme, user, password, host, port, path, around):
    url = f"{scheme}://{user}:{password}@{host}{port}{path}"
    assert SECRET not in redacted(around.format(url))
    assert SECRET not in redacted_url(url)


@pytest.mark.longer
@given(st.sampled_from(["http", "https"]), NAMES, NOISE, NOISE, NAMES, PORTS, PATHS, AROUND)
def test_a_password_in_a_web_address_is_hidden(
    scheme, user, before, after, host, port, path, around
):
    url = f"{scheme}://{user}:x{before}{SECRET}{after}@{host}{port}{path}"
    assert SECRET not in redacted(around.format(url))


@pytest.mark.longer
@given(
    st.from_regex(r"[A-Za-z0-9_]{8,30}", fullmatch=True),
    st.sampled_from(["", ":", ":x", ":x-oauth"]),
)
def test_a_token_as_the_user_of_a_web_address_is_hidden(token, password):
    shown = redacted(f"https://{token}{SECRET}longer{password}@github.com/a/b.git")
    assert SECRET not in shown
    assert shown.endswith("@github.com/a/b.git")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10))
def test_a_password_with_spaces_is_hidden(noise):
    url = f"postgresql://me:p{noise}{SECRET}@host/db"
    assert SECRET not in redacted_url(url)
    assert SECRET not in redacted(f"no {url}.")


@pytest.mark.parametrize(
    "text",
    [
        f"host=db user=me password={SECRET} dbname=x",
        f"host=db password='a \\' {SECRET}' dbname=x",
        f'{{"password": "{SECRET}", "a": 1}}',
        f"PGPASSWORD={SECRET} psql",
        f"AWS_SECRET_ACCESS_KEY: {SECRET}",
        f"{'n' * 100}password={SECRET}",
        f"https://host/path?a=1&token={SECRET}",
        f"https://host/path?X-Amz-Signature={SECRET}&b=1",
        f"https://host/path?api_key={SECRET}",
        f"https://host/path?sig={SECRET}",
        f"Authorization: Basic {SECRET}==",
        f"{{'authorization': 'Bearer {SECRET}'}}",
        f"curl -H 'X: Bearer {SECRET}'",
        f"https://hooks.slack.com/services/T0/B0/{SECRET}",
        f"https://discord.com/api/webhooks/1/{SECRET}",
        f"https://api.telegram.org/bot12:{SECRET}/sendMessage",
        f"slack://{SECRET}/B0/C0/#general",
        f"tgram://12:{SECRET}/34",
        f"mailto://me:{SECRET}@example.org?smtp=x",
        f"discord://1/{SECRET}?thread=2",
        f"jsons://host/path?+X-Key={SECRET}",
    ],
)
def test_other_secrets_are_hidden(text):
    assert SECRET not in redacted(text)
    assert redacted(redacted(text)) == redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "http://mlflow:5000/#/experiments/1",
        "see http://127.0.0.1:5000, or (http://[::1]:5000/x)",
        "http://mlflow:5000/me@here",
        "https://example.org/@me",
        "postgresql://me@db:5432/tuner",
        "sqlite:////home/me@work/tuner.db",
        "mlflow-artifacts:/1/2",
        "trial 3: lr 0.1\nval_loss: 0.2",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redacted(text) == text


@pytest.mark.longer
@pytest.mark.parametrize(
    "piece", ["a://b:", "x", "a:", "@", "password='", "://", "a://b:c ", "Basic ", "a=\"'", "?sig="]
)
def test_a_long_text_takes_no_longer_a_character(piece):
    """A quadratic one would take hours."""
    redacted(piece * (1_000_000 // len(piece)))


def test_what_training_code_raises_is_stored_without_secrets():
    error = ValueError(f"cannot read postgresql://me:a/{SECRET}@db/data?sslmode=require")
    assert SECRET not in failures.sentence(error)
    assert SECRET not in failures.full_traceback(error)
