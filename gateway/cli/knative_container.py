"""The one container of a Knative Service, and the volumes that its secrets come by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stoker.gateway.cli.yaml_fields import Field

SECRETS_FOLDER = "/var/openfaas/secrets"
# Knative's own processes listen there, beside the function.
RESERVED_PORTS = (8008, 8012, 8013, 8022, 9090, 9091)
RESERVED_NAMES = ("PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION")

_KEYS = (
    *("name", "image", "env", "ports", "resources", "readinessProbe"),
    *("securityContext", "volumeMounts"),
)
_REFUSED = {
    "command": "Remove it: Stoker runs the function's code, not the image's server.",
    "args": "Remove it: Stoker runs the function's code, not the image's server.",
    "envFrom": "Name each variable under env; secrets are files.",
    "workingDir": "Remove it: the function's folder is the working directory.",
    "imagePullPolicy": "Remove it: nothing pulls images here.",
    "livenessProbe": "Remove it: an instance that dies is replaced.",
    "startupProbe": "Remove it: a start may take 600 s.",
    "lifecycle": "Use start and stop of the function itself.",
}
_PROBE_KEYS = (
    *("tcpSocket", "initialDelaySeconds", "periodSeconds", "timeoutSeconds"),
    *("successThreshold", "failureThreshold"),
)
_READY = "Remove it: an instance is ready when its function is, which ready() of a function says."
_SECRETS = f"Project secrets into {SECRETS_FOLDER}."


@dataclass(frozen=True, slots=True)
class Container:
    """What of a container makes a function."""

    image: str
    environment: Mapping[str, str]
    limits: Mapping[str, str]
    requests: Mapping[str, str]
    secrets: tuple[str, ...]
    read_only: bool


def read_container(field: Field, volumes: Mapping[str, tuple[str, ...]]) -> Container:
    """The container; BadSpec. `volumes` are the secrets of each volume."""
    fields = field.fields(_KEYS, _REFUSED)
    if "ports" in fields:
        _check_ports(fields["ports"])
    if "readinessProbe" in fields:
        _check_probe(fields["readinessProbe"])
    limits, requests = _resources(fields.get("resources"))
    return Container(
        image=field.need(fields, "image").text(),
        environment=_environment(fields.get("env")),
        limits=limits,
        requests=requests,
        secrets=_mounted(fields.get("volumeMounts"), volumes),
        read_only=_read_only(fields.get("securityContext")),
    )


def read_volumes(field: Field | None) -> dict[str, tuple[str, ...]]:
    """The names of the secrets that each volume projects; BadSpec for any other volume."""
    volumes = {}
    for volume in _items(field):
        others = {key: _SECRETS for key in volume.names() if key not in ("name", "projected")}
        fields = volume.fields(("name", "projected"), others)
        projected = volume.need(fields, "projected")
        sources = projected.need(projected.fields(("sources", "defaultMode")), "sources")
        names = []
        for source in sources.items():
            secret = source.need(source.fields(("secret",)), "secret")
            names.append(secret.need(secret.fields(("name",)), "name").text())
        volumes[volume.need(fields, "name").text()] = tuple(names)
    return volumes


def _mounted(field: Field | None, volumes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    secrets: list[str] = []
    for mount in _items(field):
        fields = mount.fields(("name", "mountPath", "readOnly"))
        mount.need(fields, "mountPath").only(SECRETS_FOLDER, remedy=_SECRETS)
        name = mount.need(fields, "name")
        secrets += volumes[name.only(*volumes)]
    return tuple(dict.fromkeys(secrets))


def _environment(field: Field | None) -> dict[str, str]:
    made: dict[str, str] = {}
    remedy = "Write the value, or mount a secret as a file."
    for entry in _items(field):
        fields = entry.fields(("name", "value"), {"valueFrom": remedy})
        name = entry.need(fields, "name").text()
        if name in made or name in RESERVED_NAMES:
            found = "it twice" if name in made else "it, which the platform sets"
            fields["name"].wrong(f"Expected another variable than {name}, found {found}")
        made[name] = fields["value"].text() if "value" in fields else ""
    return made


def _check_ports(field: Field) -> None:
    ports = field.items()
    if len(ports) > 1:
        field.wrong(f"Expected one port, found {len(ports)}")
    for port in ports:
        fields = port.fields(("containerPort", "name", "protocol"))
        if "name" in fields:
            fields["name"].only("http1", "", remedy="HTTP/2 is not supported.")
        if "protocol" in fields:
            fields["protocol"].only("TCP")
        if "containerPort" in fields:
            number = fields["containerPort"].whole(1, 65535)
            if number in RESERVED_PORTS:
                fields["containerPort"].refuse(
                    f"another port than {', '.join(map(str, RESERVED_PORTS))}",
                    "Knative keeps these for itself; the function finds its own in PORT.",
                )


def _check_probe(field: Field) -> None:
    """That the port takes connections is what readiness means here as well."""
    fields = field.fields(_PROBE_KEYS, dict.fromkeys(("httpGet", "exec", "grpc"), _READY))
    if "tcpSocket" in fields and not fields["tcpSocket"].is_empty:
        socket = fields["tcpSocket"].fields(("port",))
        if "port" in socket:
            socket["port"].whole(0, 65535)


def _resources(field: Field | None) -> tuple[dict[str, str], dict[str, str]]:
    if field is None or field.is_empty:
        return {}, {}
    made = {}
    for key, amounts in field.fields(("limits", "requests")).items():
        remedy = "For GPUs write the annotation stoker/devices."
        others = {name: remedy for name in amounts.names() if name not in ("cpu", "memory")}
        entries = {} if amounts.is_empty else amounts.fields(("cpu", "memory"), others)
        made[key] = {name: amount.text() for name, amount in entries.items()}
    return made.get("limits", {}), made.get("requests", {})


def _read_only(field: Field | None) -> bool:
    """Of the security context, what the sandbox holds anyway may be asked for."""
    if field is None or field.is_empty:
        return False
    fields = field.fields(
        ("readOnlyRootFilesystem", "allowPrivilegeEscalation", "capabilities", "seccompProfile"),
        dict.fromkeys(
            ("runAsUser", "runAsGroup", "runAsNonRoot"), "Functions run as the node's agent does."
        ),
    )
    if "allowPrivilegeEscalation" in fields and fields["allowPrivilegeEscalation"].flag():
        fields["allowPrivilegeEscalation"].refuse("false")
    if "capabilities" in fields:
        fields["capabilities"].fields(("drop",), {"add": "Functions have no capabilities."})
    if "seccompProfile" in fields:
        profile = fields["seccompProfile"]
        profile.need(profile.fields(("type",)), "type").only("RuntimeDefault")
    return "readOnlyRootFilesystem" in fields and fields["readOnlyRootFilesystem"].flag()


def _items(field: Field | None) -> list[Field]:
    return [] if field is None or field.is_empty else field.items()
