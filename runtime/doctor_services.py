"""Checks of what Stoker reaches by name: the store and S3."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path

from stoker.placement.errors import StokerError
from stoker.placement.secrets_file import read_secret
from stoker.placement.stores import probe_store
from stoker.runtime.checkpoint.settings import CheckpointSettings
from stoker.runtime.doctor_check import Check, refused

STORE = "store"
S3 = "S3"
S3_CLOCK = "S3 clock"
# S3 refuses requests that are signed 15 minutes off; logs and leases mislead long before.
SKEW_SECONDS_MAXIMUM = 300.0
_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)


def check_store(url: str, token_file: Path) -> Check:
    """Whether the store can be read; nothing is written and nothing is made."""
    try:
        # Before the first start there is no token, and no store that wants it.
        token = read_secret(token_file) if token_file.exists() else ""
        exists = probe_store(url, token)
    except StokerError as error:
        return refused(STORE, error)
    if exists:
        return Check(STORE, "ok", f"{url} answers and is sound.")
    if url.startswith("sqlite:"):
        return Check(STORE, "ok", f"{url} will be made at the first start.")
    return Check(STORE, "ok", f"{url} answers; its folder will be made at the first start.")


def check_s3(
    environment: Mapping[str, str], clock: Callable[[], float] = time.time
) -> tuple[Check, ...]:
    """Endpoint, credentials and clock; asks nobody when no S3 is configured."""
    try:
        settings = CheckpointSettings.from_environment(environment)
    except StokerError as error:
        return (refused(S3, error),)
    if settings.s3_endpoint_url is None and not any(environment.get(n) for n in _CREDENTIALS):
        return (Check(S3, "ok", "No S3 is configured; models may come from file:// folders."),)
    # boto3 takes a while to import, and the manifest module needs the native one.
    from stoker.runtime.checkpoint.source_s3 import probe

    asked = probe(settings)
    endpoint = settings.s3_endpoint_url or "Amazon S3"
    if asked.may_not_list:
        access = Check(
            S3,
            "warn",
            f"{endpoint} answers, but these credentials may not list its buckets.",
            "Try a model that they may read: `stoker model ls s3://bucket/prefix`.",
        )
    elif asked.refused is not None:
        access = refused(S3, asked.refused)
    else:
        access = Check(
            S3, "ok", f"{endpoint} accepts the credentials and lists {asked.buckets} buckets."
        )
    if asked.server_date is None:
        return (access,)
    return (access, check_clock(asked.server_date, clock()))


def check_clock(server_date: str, now: float) -> Check:
    """Compare our clock with the Date header of an answer that just came."""
    try:
        skew_seconds = now - parsedate_to_datetime(server_date).timestamp()
    except ValueError:
        return Check(
            S3_CLOCK,
            "warn",
            f"The endpoint dates its answer {server_date!r:.60}, which is no date.",
            "See whether STOKER_S3_ENDPOINT_URL names an S3 server.",
        )
    direction = "ahead of" if skew_seconds > 0 else "behind"
    found = f"This clock is {abs(skew_seconds):.0f} s {direction} that of the S3 endpoint."
    if abs(skew_seconds) > SKEW_SECONDS_MAXIMUM:
        remedy = "Set the clock by NTP (`timedatectl set-ntp true`): signatures carry the time."
        return Check(S3_CLOCK, "fail", found, remedy)
    return Check(S3_CLOCK, "ok", found)
