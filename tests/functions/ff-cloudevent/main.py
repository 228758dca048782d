"""As in the README of functions-framework: an event in, nothing out; the log tells what came."""

import functions_framework
from cloudevents.http.event import CloudEvent
from cloudevents.http.json_methods import to_json


@functions_framework.cloud_event
def echo(event: CloudEvent) -> None:
    if event["type"] == "fail":
        raise ValueError("as asked")
    print("event", to_json(event).decode(), flush=True)
