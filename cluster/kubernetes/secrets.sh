#!/usr/bin/env bash
# Make the Secrets that the files here name, in the namespace qcrd (base.yaml). Run it once:
#
#   OPENAI_API_KEY=… cluster/kubernetes/secrets.sh        # better: read it from your password manager into the variable
#
# Values go from the environment, or from the system's random numbers, through a pipe into kubectl: they are in no file
# and in no argument, so `ps` and the shell's history do not show them. A Secret that exists already is an error and
# stays as it is. Who may read Secrets of the namespace may read these: keep that right to few, and let the cluster
# encrypt them at rest (EKS and GKE do so with a key of yours when asked to).
#
# From the environment, each left out where it is not set:
#   OPENAI_API_KEY                                                       the teacher's key
#   AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for another store than S3
#                                        the bucket's, only where nodes do not have the right by the cloud's identities
set -euo pipefail
set +o xtrace  # never print values

kubectl=${KUBECTL:-kubectl}
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
# NAME: makes a Secret of the lines KEY=VALUE on standard input.
from_lines() { "$kubectl" --namespace qcrd create secret generic "$1" --from-env-file=/dev/stdin; }

if [ -n "${OPENAI_API_KEY:-}" ]; then
    printf 'OPENAI_API_KEY=%s\n' "$OPENAI_API_KEY" | from_lines qcrd-teacher
fi
if [ -n "${AWS_ACCESS_KEY_ID:-}" ]; then
    {
        printf 'AWS_ACCESS_KEY_ID=%s\n' "$AWS_ACCESS_KEY_ID"
        printf 'AWS_SECRET_ACCESS_KEY=%s\n' "${AWS_SECRET_ACCESS_KEY:?is not set}"
        if [ -n "${AWS_ENDPOINT_URL:-}" ]; then printf 'AWS_ENDPOINT_URL=%s\n' "$AWS_ENDPOINT_URL"; fi
    } | from_lines qcrd-bucket
fi

# For mlflow.yaml. The store wants its keys as JSON, MLflow the same ones in two variables.
printf 'password=%s\n' "$(random)" | from_lines qcrd-postgres
key=$(random) secret=$(random)
{
    printf 'access_key=%s\nsecret_key=%s\n' "$key" "$secret"
    printf 's3.json={"identities": [{"name": "mlflow", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], ' \
        "$key" "$secret"
    printf '"actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}\n'
} | from_lines qcrd-store
