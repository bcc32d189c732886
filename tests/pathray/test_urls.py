"""Secrets in URLs and texts. The texts are those of real libraries: urllib3, aiohttp, SQLAlchemy, cloud SDKs."""

from __future__ import annotations

import logging
import pickle

import pytest

from pathray.errors import MissingFile, UnreadableUnit, UserError
from pathray.urls import public, public_text, public_values, sqlite_uri


@pytest.mark.parametrize(
    "text",
    [
        "cannot connect to https://anna:geheim@mlflow.example:5000/base",
        "cannot connect to postgresql+psycopg2://anna:ge/heim?x#geheim@db.example/mlflow",
        "cannot connect to https://anna:a@geheim@mlflow.example/base",
        "clone of https://geheim@git.example/repo.git failed",
        "GET https://acc.blob.core.windows.net/c/a.svs?sv=2022&sig=geheim%2Bx%3D: 403",
        "GET https://b.s3.amazonaws.com/a.svs?X-Amz-Credential=geheim/2025&X-Amz-Signature=geheim, retrying",
        "GET 'https://storage.googleapis.com/b/a.svs?X-Goog-Signature=geheim'",
        "Max retries exceeded with url: /a.svs?AWSAccessKeyId=geheim&Signature=geheim&Expires=1",
        "url: /api/2.0/mlflow?token=geheim (Caused by NewConnectionError)",
        "aws_secret_access_key=geheim password=geheim SAS=geheim",
        "Authorization: Bearer geheimgeheim",
        "nodename nor servname: anna:geheim@mlflow.example:5000",
    ],
)
def test_no_secret_is_left_in_a_text(text):
    assert "geheim" in text and "geheim" not in public_text(text)
    for error in (UserError(text, file=text, key="k", found=text), MissingFile("gone", found=[text])):
        assert "geheim" not in str(error) + str(pickle.loads(pickle.dumps(error)))
    assert "geheim" not in str(UnreadableUnit("io", text, text))


@pytest.mark.parametrize(
    "text",
    [
        "no slides (file: slides.csv; row: 3)",
        "expected one of (gs://, s3://): 'data.seed'",
        "http://127.0.0.1:5000/tile@2x/a.png at 12:30",
        "http://[::1]:5000/a@b",
        "s3://bucket/a@b/c.svs, /data/a?b@c.svs, tokens=5, level:3@0.5",
        "sqlite:////runs/a%20b/mlflow.db",
    ],
)
def test_other_texts_stay_as_they_are(text):
    assert public_text(text) == text


def test_the_host_and_path_of_a_url_are_still_told():
    assert public("https://anna:geheim@h.example:5000/b?token=x#y") == "https://h.example:5000/b"
    assert public("s3://key:p?a/ss@bucket/x.svs") == "s3://bucket/x.svs"


def test_what_is_saved_keeps_its_shape():
    value = {"uri": "http://u:geheim@h/a", "n": 3, "texts": ["password=x", "gs://b/a?sig=geheim"], "none": None}
    expected = {"uri": "http://h/a", "n": 3, "texts": ["password=x", "gs://b/a"], "none": None}
    assert public_values(value) == expected


def test_a_jobs_log_has_no_login_whoever_writes_it():
    from ray_jobs.shell.cli import PublicFormatter

    record = logging.LogRecord("lib", logging.WARNING, "f.py", 1, "retrying %s", ("http://u:geheim@h/a",), None)
    assert PublicFormatter("%(message)s").format(record) == "retrying http://h/a"


@pytest.mark.parametrize("folder", ["100%#2?x=1", "a b", "épreuve 李明", "run[1]", "50%20", "a@b:c"])
def test_an_sqlite_file_is_where_its_folder_is_whatever_its_name(tmp_path, folder):
    from sqlalchemy.engine import make_url

    path = str(tmp_path / folder / "mlflow.db")
    assert make_url(sqlite_uri(path)).database == path
