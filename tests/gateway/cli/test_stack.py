"""Reading stack.yaml: what comes out, and where each complaint points."""

from pathlib import Path

import pytest

from stoker.gateway.cli.stack import Stack, load_stack, substitute
from stoker.placement.errors import BadSpec


def load(folder: Path, text: str, **environment: str) -> Stack:
    path = folder / "stack.yaml"
    path.write_text(text)
    return load_stack(path, environment)


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(BadSpec) as raised:
        load(folder, text)
    return str(raised.value)


def test_a_stack_becomes_deployments_with_strings_everywhere(tmp_path: Path) -> None:
    stack = load(
        tmp_path,
        """
version: 1.0
provider: {name: openfaas, gateway: "http://far:8080"}
functions:
  chat:
    image: stoker/chat:latest
    fprocess: cat
    namespace: dev
    environment: {DEBUG: true, LEVEL: 3, EMPTY: }
    labels: {com.openfaas.scale.min: 1, com.openfaas.scale.zero: true}
    annotations: {stoker/model: "s3://models/chat", stoker/idle-ttl: 1.5}
    limits: {memory: 1Gi}
    secrets: [key]
    constraints: [gpu]
    readonly_root_filesystem: true
""",
    )

    assert stack.gateway == "http://far:8080"
    assert [f.deployment() for f in stack.functions] == [
        {
            "service": "chat",
            "image": "stoker/chat:latest",
            "namespace": "dev",
            "envProcess": "cat",
            "envVars": {"DEBUG": "true", "LEVEL": "3", "EMPTY": ""},
            "labels": {"com.openfaas.scale.min": "1", "com.openfaas.scale.zero": "true"},
            "annotations": {"stoker/model": "s3://models/chat", "stoker/idle-ttl": "1.5"},
            "limits": {"memory": "1Gi"},
            "secrets": ["key"],
            "constraints": ["gpu"],
            "readOnlyRootFilesystem": True,
        }
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${NAME}", "value"),
        ("${NAME:-other}", "value"),
        ("${ABSENT:-other}", "other"),
        ("${EMPTY:-other}", "other"),
        ("${EMPTY-other}", ""),
        ("${ABSENT}", ""),
        ("${ABSENT:-s3://models/a-b}", "s3://models/a-b"),
        ("$${NAME}", "${NAME}"),
        ("$NAME costs $5", "$NAME costs $5"),
        ("${NAME}/${NAME}", "value/value"),
    ],
)
def test_variables_are_substituted(text: str, expected: str) -> None:
    assert substitute(text, {"NAME": "value", "EMPTY": ""}) == expected


def test_the_environment_reaches_the_annotations(tmp_path: Path) -> None:
    text = "functions:\n  a:\n    annotations:\n      stoker/model: ${MODEL:-s3://m/one}\n"

    for environment, model in (({}, "s3://m/one"), ({"MODEL": "s3://m/two"}, "s3://m/two")):
        stack = load(tmp_path, text, **environment)
        assert stack.functions[0].annotations == {"stoker/model": model}


def test_a_model_beside_the_stack_file_becomes_an_absolute_uri(tmp_path: Path) -> None:
    stack = load(tmp_path, "functions:\n  a:\n    annotations: {stoker/model: ./m one}\n")

    expected = (tmp_path / "m one").as_uri()
    assert stack.functions[0].annotations == {"stoker/model": expected}


def test_only_a_handler_folder_with_a_template_language_is_built(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    text = """
functions:
  built: {lang: python3-stoker, handler: ./code}
  image: {lang: dockerfile, handler: ./code, image: a/b}
  skipped: {lang: python3-stoker, handler: ./code, skip_build: true}
  model: {annotations: {stoker/model: "s3://a/b"}}
"""

    built = {f.name: f.needs_build for f in load(tmp_path, text).functions}
    assert built == {"built": True, "image": False, "skipped": False, "model": False}


def test_an_environment_file_is_read_and_the_stack_wins(tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("environment: {A: 1, B: 2}\n")
    text = "functions:\n  a:\n    environment_file: [env.yaml]\n    environment: {B: 3}\n"

    assert load(tmp_path, text).functions[0].environment == {"A": "1", "B": "3"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("functions:\n  a: [1\n  b", 3, "Expected YAML"),
        ("functions:\n  a:\n    image: x\n    image: y\n", 4, "'image' twice"),
        ("functions:\n  a:\n    anotations: {}\n", 3, "Did you mean 'annotations'?"),
        ("functions:\n  a:\n    labels: [x]\n", 3, "Expected a mapping in functions.a.labels"),
        ("functions:\n  a:\n    labels:\n      k: [1]\n", 4, "Expected one value"),
        ("functions:\n  a:\n    secrets: key\n", 3, "Expected a list in functions.a.secrets"),
        ("functions:\n  a:\n    skip_build: maybe\n", 3, "Expected true or false"),
        ("functions:\n  a.dev:\n    image: x\n", 3, "found 'a.dev'"),
        ("functions:\n  a:\n    lang: py\n    handler: ./none\n", 4, "Expected a handler folder"),
        ("functions: 3\n", 1, "Expected a mapping in functions, found '3'"),
        ("provider: {name: openfaas}\n", 1, "Expected the key `functions`"),
        ("- a\n", 1, "Expected a mapping in the stack file, found a list"),
        (
            "functions:\n  a:\n    annotations:\n      stoker/model: file://m\n",
            4,
            "Expected an absolute file:// URI",
        ),
    ],
)
def test_a_bad_stack_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    said = complaint(tmp_path, text)

    assert words in said
    assert f"{tmp_path / 'stack.yaml'}:{line})" in said


def test_an_empty_file_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "found an empty file" in complaint(tmp_path, "# nothing\n")
    with pytest.raises(BadSpec, match="No such file"):
        load_stack(tmp_path / "none.yaml")
