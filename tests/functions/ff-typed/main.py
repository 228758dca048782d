"""As in the README of functions-framework: a type of the user's in, another one out."""

import functions_framework


class Payload:
    def __init__(self, value: int) -> None:
        self.value = value

    @staticmethod
    def from_dict(fields: dict[str, int]) -> "Payload":
        return Payload(fields["value"])

    def to_dict(self) -> dict[str, int]:
        return {"value": self.value}


@functions_framework.typed(Payload)
def double(payload: Payload) -> Payload:
    return Payload(2 * payload.value)
