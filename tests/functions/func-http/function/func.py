"""As `func create -l python -t http` lays it out."""

import logging


def new():
    return Function()


class Function:
    async def handle(self, scope, receive, send):
        logging.info("Request Received")
        body = (await receive())["body"]
        headers = [[b"content-type", b"text/plain"]]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": self.greeting + b" " + body})

    def start(self, cfg):
        self.greeting = cfg["GREETING"].encode()

    def stop(self):
        logging.info("Function stopping")

    def alive(self):
        return True, "Alive"

    def ready(self):
        return True, "Ready"
