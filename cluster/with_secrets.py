#!/usr/bin/env python3
"""Start a command with secrets of the cloud's secret manager in its environment.

    with-secrets aws:us-west-2 RAY_AUTH_TOKEN=qcrd/ray-token OPENAI_API_KEY=qcrd/teacher -- ray start --head
    with-secrets gcp:my-project RAY_AUTH_TOKEN=qcrd-ray-token -- ray start --head

The node's own role reads them (instance profile, service account). The values are neither in a file, nor in an
argument, nor in Ray's configuration; what the command starts inherits them. Knows nothing about qcrd or Ray.
"""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Callable, Sequence

USAGE = "with-secrets aws:REGION|gcp:PROJECT VARIABLE=SECRET [VARIABLE=SECRET …] -- COMMAND [ARGUMENT …]"
GCP_SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def aws_secret(region: str, name: str) -> str:
    """A secret of AWS Secrets Manager."""
    import boto3

    return boto3.client("secretsmanager", region_name=region).get_secret_value(SecretId=name)["SecretString"]


def gcp_secret(project: str, name: str) -> str:
    """The latest version of a secret of Google's Secret Manager."""
    import google.auth
    from google.auth.transport.requests import AuthorizedSession

    credentials, _ = google.auth.default(scopes=[GCP_SCOPE])
    url = f"https://secretmanager.googleapis.com/v1/projects/{project}/secrets/{name}/versions/latest:access"
    answer = AuthorizedSession(credentials).get(url, timeout=60)
    answer.raise_for_status()
    return base64.b64decode(answer.json()["payload"]["data"]).decode()


READERS: dict[str, Callable[[str, str], str]] = {"aws": aws_secret, "gcp": gcp_secret}


def parse(arguments: Sequence[str]) -> tuple[str, str, dict[str, str], list[str]]:
    """(cloud, place, variable → secret, command). Raises `ValueError` for anything else than USAGE."""
    before, command = list(arguments), []
    if "--" in before:
        at = before.index("--")
        before, command = before[:at], before[at + 1 :]
    cloud, _, place = (before[0] if before else "").partition(":")
    names = dict(pair.split("=", 1) for pair in before[1:] if "=" in pair)
    if cloud not in READERS or not place or not command or not names or len(names) != len(before) - 1:
        raise ValueError(f"usage: {USAGE}")
    return cloud, place, names, command


def environment(cloud: str, place: str, names: dict[str, str]) -> dict[str, str]:
    """Variable → value. Raises `ValueError` for an empty secret, for a missing one what the cloud's library raises."""
    values = {}
    for variable, name in names.items():
        try:
            values[variable] = READERS[cloud](place, name).strip()
        except Exception as error:
            error.add_note(f"with-secrets: reading {name!r} for {variable}")
            raise
        if not values[variable]:
            raise ValueError(f"with-secrets: the secret {name!r} for {variable} is empty")
    return values


def main(arguments: Sequence[str]) -> None:
    try:
        cloud, place, names, command = parse(arguments)
    except ValueError as error:
        sys.exit(str(error))
    os.execvpe(command[0], command, {**os.environ, **environment(cloud, place, names)})


if __name__ == "__main__":
    main(sys.argv[1:])
