"""The `stoker` command as a whole."""

import subprocess
import sys

HEAVY = {"torch", "transformers", "boto3", "botocore", "flask", "kazoo", "uvicorn"}


def test_the_verbs_import_nothing_heavy() -> None:
    code = (
        "import sys; from stoker.deploy.main import main;"
        "print(*(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert HEAVY & set(listed.stdout.split()) == set()


def test_every_command_has_a_sentence_of_help() -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "stoker.deploy.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    commands = [line.split() for line in listed.partition("Commands:")[2].splitlines() if line]
    names = [words[0] for words in commands]
    assert names == [
        "deploy",
        "describe",
        "doctor",
        "evict",
        "export",
        "gateway",
        "invoke",
        "jobs",
        "logs",
        "ls",
        "model",
        "namespace",
        "node",
        "placement",
        "plan",
        "ps",
        "rm",
        "scale",
        "secret",
        "simulate",
        "up",
        "why",
    ]
    assert all(len(words) > 3 for words in commands)
