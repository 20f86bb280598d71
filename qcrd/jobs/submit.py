"""`qcrd submit` and `qcrd status`: a job on a Ray cluster, over the cluster's job server.

A job is known by what it runs. While an attempt at it is under way a second submission watches that one; after its end
a new attempt goes on from the stages that are finished, as `qcrd run` does. Knows nothing about what a job does.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import shlex
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

from qcrd.config import ConfigError
from qcrd.console import Display, duration
from qcrd.jobs.job import RECIPE, Job

QUIET_SECONDS = 15.0  # of a log without a new line, after which the job's state is asked for
RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 300.0  # of a job server that does not answer: a tunnel that broke may come back
LOG_LINES = 20
Say = Callable[[str], None]


# -- the job server ---------------------------------------------------------------------------------------------------


def check_address(address: str) -> str | None:
    """What to warn of about an address, if anything. Raises `ConfigError` where it is no URL of a job server."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        shown = "what was given" if "@" in address else repr(address)
        raise ConfigError(f"--address: {shown} is not allowed; give a job server's URL, as http://127.0.0.1:8265")
    if parts.scheme == "https" or _is_loopback(parts.hostname):
        return None
    return (
        f"{address} is neither this machine nor https: a job server executes whatever it is sent, and the token goes "
        "over the network in the clear; use a tunnel (ssh -L, kubectl port-forward) and http://127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def auth_token() -> str | None:
    """Ray's token, from where Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return (path.read_text().strip() or None) if path.is_file() else None


def connect(address: str, warn: Say) -> JobSubmissionClient:
    """A client of the job server at `address`. Raises `ConfigError` where none answers, or not to us."""
    if (warning := check_address(address)) is not None:
        warn(warning)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers it, and RAY_ADDRESS, to the address it is given
    os.environ.setdefault("RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES", "")  # job.EXCLUDES has them, without warnings
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # not each step of an upload
    token = auth_token()
    # Given as a header, the token does not depend on RAY_AUTH_MODE, which Ray reads once, when it is first imported.
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        return JobSubmissionClient(address, headers=headers)
    except AuthenticationError:
        problem = "asks for a token, and there is none" if token is None else "does not accept the token"
        raise ConfigError(
            f"--address: {address} {problem}; put the cluster's into RAY_AUTH_TOKEN, into a file that "
            "RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token"
        ) from None
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--address: no job server answers at {address} ({reason}); is the tunnel open?") from None


# -- submitting -------------------------------------------------------------------------------------------------------


def submit(client: JobSubmissionClient, job: Job, say: Say) -> str:
    """The submission id of the attempt at `job` that is under way, or of a new one. Raises `ConfigError`."""
    attempts = attempts_at(client, job)
    last = max(attempts, default=0)
    if last and not attempts[last].status.is_terminal():
        say(f"{job.name}-{last} is {attempts[last].status} already, and is this very job: nothing new is submitted")
        return f"{job.name}-{last}"
    if last:
        say(f"{job.name}-{last} {attempts[last].status}; a new attempt goes on from the stages that are finished")
    new = f"{job.name}-{last + 1}"
    try:
        client.submit_job(
            entrypoint=job.entrypoint, runtime_env=job.runtime_env(), submission_id=new, metadata=dict(job.metadata)
        )
    except (RuntimeError, ValueError) as error:
        if last + 1 not in attempts_at(client, job):
            raise ConfigError(f"the job was refused: {str(error).strip().splitlines()[-1]}") from error
        say(f"{new} was submitted by somebody else at the same moment")
    return new


def attempts_at(client: JobSubmissionClient, job: Job) -> dict[int, JobDetails]:
    """All attempts that the cluster knows of, by number."""
    pattern = re.compile(rf"{re.escape(job.name)}-(\d+)")
    found = [(pattern.fullmatch(one.submission_id or ""), one) for one in client.list_jobs()]
    return {int(match[1]): one for match, one in found if match is not None}


def how_to_go_on(address: str, job_id: str) -> str:
    """What a person can do about a job that runs without them."""
    where = f"--address {shlex.quote(address)}"
    return (
        f"  state and last lines:  qcrd status {job_id} {where}\n"
        f"  follow its log again:  the same qcrd submit\n"
        f"  stop it:               RAY_AUTH_MODE=token ray job stop {where} {job_id}"
    )


# -- watching ---------------------------------------------------------------------------------------------------------


def follow(client: JobSubmissionClient, job_id: str, display: Display) -> JobDetails:
    """Show a job's log as it grows, until the job has ended. Raises `KeyboardInterrupt`, which leaves it running, and
    `OSError` where the job server has been away for too long."""

    def write(text: str) -> None:
        display.console.file.write(text)
        display.console.file.flush()

    return asyncio.run(_follow(client, job_id, write, display.say))


async def _follow(client: JobSubmissionClient, job_id: str, write: Say, say: Say) -> JobDetails:
    """After a connection that broke, the log is read from its start again; what was written is left out."""
    written, heard = 0, time.monotonic()
    while True:
        try:
            read = 0
            async for text in _log(client, job_id, say):
                write(text[max(0, written - read) :])
                read += len(text)
                written, heard = max(written, read), time.monotonic()
            info = client.get_job_info(job_id)
            heard = time.monotonic()
            if info.status.is_terminal():
                return info
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise ConnectionError(f"the job server has not answered for {duration(PATIENCE_SECONDS)}") from error
        await asyncio.sleep(RETRY_SECONDS)


async def _log(client: JobSubmissionClient, job_id: str, say: Say) -> AsyncIterator[str]:
    """A job's log from its start to its end, in pieces. Raises `OSError` where it went on without telling."""
    pieces = client.tail_job_logs(job_id)
    said = None
    while True:
        piece = asyncio.ensure_future(anext(pieces, None))
        while not (await asyncio.wait({piece}, timeout=QUIET_SECONDS))[0]:
            info = client.get_job_info(job_id)
            if info.status.is_terminal():
                piece.cancel()
                raise ConnectionError("the job has ended, and its log has not")
            if info.status == JobStatus.PENDING and info.message != said:
                said = info.message
                say(f"{job_id}: {info.status}. {said or ''}")
        text = piece.result()
        if text is None:
            return
        yield text


def exit_code(info: JobDetails) -> int:
    """A job's exit code as a shell has it; 0 while it runs, 1 where it ended without one."""
    if info.status == JobStatus.SUCCEEDED or not info.status.is_terminal():
        return 0
    code = info.driver_exit_code or 1
    return code if code > 0 else 128 - code  # ended by a signal


def outcome(info: JobDetails) -> str:
    """How a job stands, in a line."""
    line = f"{info.submission_id}: {info.status}"
    if info.start_time is not None:
        line += f" after {_lasted(info)}" if info.status.is_terminal() else f" for {_lasted(info)}"
    if info.driver_exit_code:
        return f"{line}, exit code {exit_code(info)}"
    return line if info.status == JobStatus.SUCCEEDED else f"{line}. {(info.message or '').strip()}"


def show_jobs(client: JobSubmissionClient, address: str, display: Display) -> None:
    """A table of the jobs that `qcrd submit` has submitted."""
    jobs = [one for one in client.list_jobs() if one.type == JobType.SUBMISSION and RECIPE in (one.metadata or {})]
    rows = [
        [one.submission_id, one.status, _started(one), _lasted(one), (one.metadata or {})[RECIPE],
         "" if one.driver_exit_code is None else str(exit_code(one))]
        for one in sorted(jobs, key=lambda one: one.start_time or 0)
    ]  # fmt: skip
    display.table(f"Jobs at {address}", ["job", "state", "started", "duration", "recipe", "exit code"], rows)


def show_job(client: JobSubmissionClient, job_id: str, display: Display) -> int:
    """State, message and last log lines of a job. Returns its exit code. Raises `ConfigError` for one that is not."""
    if not re.fullmatch(r"[\w.-]+", job_id):
        raise ConfigError(f"JOB: {job_id!r} is not allowed; give an id that qcrd status lists")
    try:
        info = client.get_job_info(job_id)
    except RuntimeError as error:
        if "404" not in str(error):
            raise
        raise ConfigError(f"JOB: {job_id!r} is not known to the job server; qcrd status lists those that are") from None
    try:
        lines = client.get_job_logs(job_id).splitlines()[-LOG_LINES:]
    except RuntimeError as error:  # the log lies on the node where the driver ran, and goes with it
        lines = [f"(the log cannot be had: {str(error).strip().splitlines()[-1]})"]
    for line in lines:
        display.say(line)
    display.say(outcome(info))
    return exit_code(info)


def _started(info: JobDetails) -> str:
    if info.start_time is None:
        return ""
    return datetime.fromtimestamp(info.start_time / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _lasted(info: JobDetails) -> str:
    if info.start_time is None:
        return ""
    return duration((info.end_time or time.time() * 1000) / 1000 - info.start_time / 1000)
