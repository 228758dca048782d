"""As `func create -l python -t cloudevents` lays it out: it answers each event with another."""

import logging

from cloudevents.core.v1.event import CloudEvent


def new():
    return Function()


class Function:
    async def handle(self, scope, receive, send):
        logging.info("Request Received")
        request = scope["event"]
        response = CloudEvent(
            attributes={
                "type": "function.response",
                "source": "function",
                "id": f"response-{request.get_id()}",
                "subject": request.get_subject(),
            },
            data={"message": "OK", "got": request.get_data()},
        )
        await send(response)
