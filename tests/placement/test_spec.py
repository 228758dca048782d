import dataclasses
from typing import Any

import pytest

from harness.specs import MODEL, deployment, model
from stoker.placement.errors import BadRequest, BadSpec
from stoker.placement.records import CheckpointRef, FunctionRecord, Scaling, decode, encode
from stoker.placement.spec import parse_deployment, record_from_draft, status_of
from stoker.placement.spec_fields import duration_seconds

CHECKPOINT = CheckpointRef("s3://models/chat", "a" * 64, 1000, packed=False)


def test_a_model_function_chats_by_default_and_has_one_instance_at_most() -> None:
    draft = parse_deployment(model())
    assert (draft.task, draft.model_uri, draft.namespace) == (
        "chat",
        "s3://models/chat",
        "openfaas-fn",
    )
    assert draft.scaling == Scaling(minimum=0, maximum=1, concurrency=16, idle_seconds=None)


def test_a_function_without_a_model_is_custom_and_has_four_instances_at_most() -> None:
    draft = parse_deployment(deployment())
    assert (draft.task, draft.model_uri, draft.scaling.maximum) == ("custom", None, 4)


def test_every_key_of_this_release_is_taken() -> None:
    draft = parse_deployment(
        model(
            task="embed",
            engine="transformers",
            dtype="bfloat16",
            max_context="2048",
            idle_ttl="1h5m",
            priority="7",
            slo_ttft_ms="1500",
        )
    )
    assert (draft.task, draft.engine, draft.dtype) == ("embed", "transformers", "bfloat16")
    assert (draft.max_context, draft.scaling.idle_seconds) == (2048, 3900.0)
    record = record_from_draft(draft, CHECKPOINT, None, 0.0, 1)
    assert (record.priority, record.slo_ttft_seconds) == (7, 1.5)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("modle", "model"), ("max_context", "max-context"), ("idle", "idle-ttl"), ("dtypes", "dtype")],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, nearest: str) -> None:
    with pytest.raises(BadSpec, match=f"stoker/{key} is unknown.*stoker/{nearest}"):
        parse_deployment(deployment(annotations={f"stoker/{key}": "x"}))


@pytest.mark.parametrize("key", ["slo-tpot-ms", "host-pin", "trigger-s3"])
def test_a_key_of_a_later_release_is_refused_and_not_ignored(key: str) -> None:
    with pytest.raises(BadSpec, match=f"stoker/{key} is not supported in this release"):
        parse_deployment(deployment(annotations={**MODEL, f"stoker/{key}": "1"}))


def test_an_adapter_goes_with_a_model() -> None:
    draft = parse_deployment(model(adapter="s3://models/lora"))
    pinned = CheckpointRef("s3://models/lora", "c" * 64, 10, packed=False)
    record = record_from_draft(draft, CHECKPOINT, None, 0.0, 1, pinned)
    assert (record.checkpoint, record.adapter) == (CHECKPOINT, pinned)
    assert decode(FunctionRecord, encode(record)) == record

    with pytest.raises(BadSpec, match="s3://models/lora"):
        record_from_draft(draft, CHECKPOINT, None, 0.0, 1)
    with pytest.raises(BadSpec, match="stoker/model beside stoker/adapter"):
        parse_deployment(deployment(annotations={"stoker/adapter": "s3://models/lora"}))
    with pytest.raises(BadSpec, match="at stoker/adapter, found 'lora'"):
        parse_deployment(model(adapter="lora"))


def test_a_stoker_key_among_the_labels_is_refused() -> None:
    with pytest.raises(BadSpec, match="among the annotations"):
        parse_deployment(deployment(labels=MODEL))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", "https://example.com/x"),
        ("model", "s3://"),
        ("model", "file:///"),
        ("model", "s3://b/\n"),
        ("task", "sing"),
        ("engine", "vllm"),
        ("dtype", "int4"),
        ("max-context", "0"),
        ("max-context", "2k"),
        ("max-context", "-1"),
        ("priority", "high"),
        ("priority", "1001"),
        ("slo-ttft-ms", "0"),
        ("idle-ttl", "soon"),
        ("idle-ttl", "-5"),
        ("idle-ttl", "5m 3s"),
        ("idle-ttl", "99999h"),
    ],
)
def test_a_wrong_value_is_refused_with_key_and_value(key: str, value: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse_deployment(deployment(annotations={**MODEL, f"stoker/{key}": value}))
    assert f"stoker/{key}" in caught.value.cause
    assert repr(value) in caught.value.cause


def test_a_model_task_without_a_model_is_refused() -> None:
    with pytest.raises(BadSpec, match="stoker/model"):
        parse_deployment(deployment(annotations={"stoker/task": "chat"}))


def test_code_may_have_a_model_and_is_then_called_by_handle_alone() -> None:
    draft = parse_deployment(model(task="custom"))
    assert (draft.task, draft.model_uri) == ("custom", model()["annotations"]["stoker/model"])
    parse_deployment(model(task="custom", handler="openfaas"))
    with pytest.raises(BadSpec, match="stoker/handler: openfaas for code with a model"):
        parse_deployment(model(task="custom", handler="knative"))


@pytest.mark.parametrize(
    "fields",
    [
        {"service": None},
        {"service": "../x"},
        {"image": ""},
        {"image": 7},
        {"image": "x" * 600},
        {"namespace": "No"},
        {"labels": []},
        {"labels": {"a": 1}},
        {"annotations": "x"},
        {"envVars": {"A=B": "x"}},
        {"envVars": {"A": "x\0"}},
        {"envProcess": ["x"]},
        {"secrets": ["../passwd"]},
        {"secrets": "x"},
        {"secrets": ["x"] * 65},
        {"constraints": [1]},
        {"limits": {"memory": 5}},
        {"readOnlyRootFilesystem": "yes"},
    ],
)
def test_a_malformed_field_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="found"):
        parse_deployment({**deployment(), **fields})


@pytest.mark.parametrize(
    ("annotations", "env_process", "found"),
    [
        ({"stoker/handler": "cgi"}, "", "or process at stoker/handler, found 'cgi'"),
        ({"stoker/handler": "process"}, "", "Expected fprocess with stoker/handler: process"),
        (
            {"stoker/handler": "openfaas", "stoker/model": "s3://b/m"},
            "",
            "found it beside stoker/model",
        ),
    ],
)
def test_a_stated_handler_must_be_known_and_fit(
    annotations: dict[str, str], env_process: str, found: str
) -> None:
    with pytest.raises(BadSpec, match=found):
        parse_deployment(deployment(annotations=annotations, envProcess=env_process))
    fitting = {"stoker/handler": "process"}
    parse_deployment(deployment(annotations=fitting, envProcess="cat"))


def test_a_refusal_does_not_tell_the_value_of_a_variable() -> None:
    with pytest.raises(BadSpec) as caught:
        parse_deployment(deployment(envVars={"PASSWORD": "hunter2\0"}))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("1.5", 1.5),
        ("5m", 300.0),
        ("1h5m30s", 3930.0),
        ("250ms", 0.25),
        ("0s", 0.0),
        ("", None),
        ("m", None),
        ("5 m", None),
        ("5x", None),
        ("-5m", None),
        ("\u0665", None),
    ],
)
def test_a_duration_is_seconds_or_a_go_duration(text: str, seconds: float | None) -> None:
    assert duration_seconds(text) == seconds


def test_the_record_holds_the_draft_and_what_was_looked_up() -> None:
    draft = parse_deployment(
        deployment(
            annotations=MODEL,
            envVars={"A": "1"},
            secrets=["key"],
            limits={"memory": "1Gi"},
            labels={"team": "x"},
            readOnlyRootFilesystem=True,
        )
    )
    record = record_from_draft(draft, CHECKPOINT, None, created_at=12.0, generation=3)
    for field in dataclasses.fields(draft):
        if field.name not in ("model_uri", "adapter_uri"):
            assert getattr(record, field.name) == getattr(draft, field.name), field.name
    assert (record.checkpoint, record.created_at, record.generation) == (CHECKPOINT, 12.0, 3)
    assert decode(FunctionRecord, encode(record)) == record


def test_a_custom_function_without_code_is_refused() -> None:
    with pytest.raises(BadSpec, match="found none"):
        record_from_draft(parse_deployment(deployment()), None, None, 0.0, 1)


def test_a_model_function_without_its_checkpoint_is_refused() -> None:
    with pytest.raises(BadSpec, match="s3://models/chat"):
        record_from_draft(parse_deployment(model()), None, None, 0.0, 1)


def test_a_spec_too_large_for_the_store_is_refused() -> None:
    draft = parse_deployment(deployment(envVars={"A": "x" * 600_000}))
    with pytest.raises(BadSpec, match="at most 524288 bytes"):
        record_from_draft(draft, None, "b" * 64, 0.0, 1)


def test_the_status_of_a_bare_function_omits_what_was_not_supplied() -> None:
    record = FunctionRecord("f", "ns", "img", code_digest="b" * 64, created_at=1_700_000_000.5)
    assert status_of(record, replicas=2, available=1, invocation_count=7) == {
        "name": "f",
        "namespace": "ns",
        "image": "img",
        "labels": {"faas_function": "f"},
        "annotations": {},
        "replicas": 2,
        "availableReplicas": 1,
        "invocationCount": 7,
        "createdAt": "2023-11-14T22:13:20Z",
    }


def test_the_status_echoes_what_was_supplied() -> None:
    body = deployment(
        envVars={"A": "1"},
        limits={"memory": "1Gi"},
        requests={"cpu": "1"},
        secrets=["key"],
        constraints=["zone=a"],
        envProcess="python index.py",
        annotations={"topic": "x"},
    )
    record = record_from_draft(parse_deployment(body), None, "b" * 64, 0.0, 1)
    status = status_of(record, 0, 0, 0)
    for key in body:
        assert status["name" if key == "service" else key] == body[key]
