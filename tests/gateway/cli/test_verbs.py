"""The verbs, run as the `stoker` command against a small real HTTP server."""

import datetime
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness.fake_gateway import PASSWORD, FakeGateway, serve
from stoker.deploy.main import main
from stoker.gateway.cli.client import find_access
from stoker.gateway.cli.manage import since_timestamp
from stoker.gateway.cli.options import bytes_in_words, print_table
from stoker.gateway.cli.status import age_in_words
from stoker.placement.errors import BadRequest

Run = Callable[..., Result]
STACK = """
provider: {name: openfaas}
functions:
  echo: {lang: python3-stoker, handler: ./code, image: "echo:1"}
  chat:
    image: chat:1
    annotations: {stoker/model: "${MODEL:-s3://m/chat}", stoker/task: chat}
"""


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with serve() as fake:
        yield fake


@pytest.fixture
def run(gateway: FakeGateway) -> Run:
    def invoke(*arguments: str, stdin: str | None = None, **environment: str) -> Result:
        settings = {"STOKER_GATEWAY": gateway.url, "STOKER_PASSWORD": PASSWORD, **environment}
        result = CliRunner().invoke(main, arguments, input=stdin, env=settings)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


@pytest.fixture
def stack(tmp_path: Path) -> str:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "handler.py").write_text("def handle(event, context): ...\n")
    (tmp_path / "stack.yaml").write_text(STACK)
    return str(tmp_path / "stack.yaml")


def test_deploy_builds_a_handler_then_puts_then_posts_what_is_absent(
    run: Run, gateway: FakeGateway, stack: str
) -> None:
    first = run("deploy", "-f", stack, "--filter", "echo")
    assert first.exit_code == 0
    assert first.output.splitlines() == [
        "echo is new:",
        "  + image: echo:1",
        f"  code: from {Path(stack).parent / 'code'}",
        f"Deployed echo: {gateway.url}/function/echo",
    ]
    assert gateway.methods()[1:4] == [
        "POST /build",
        "PUT /system/functions",
        "POST /system/functions",
    ]
    assert "context/function/handler.py" in gateway.built

    gateway.requests.clear()
    assert run("deploy", "-f", stack, "--filter", "echo").exit_code == 0
    assert "POST /system/functions" not in gateway.methods()


def test_deploy_says_first_what_will_change_and_a_dry_run_nothing_else(
    run: Run, gateway: FakeGateway, stack: str
) -> None:
    run("deploy", "-f", stack, "--filter", "chat")
    gateway.functions["chat"]["labels"] = {"old": "x\x1b[2J", "faas_function": "chat"}
    gateway.requests.clear()

    result = run("deploy", "-f", stack, "--filter", "chat", "--dry-run", MODEL="s3://m/other")

    assert result.output.splitlines() == [
        "chat changes:",
        "  ~ annotations.stoker/model: s3://m/chat -> s3://m/other",
        r"  - labels.old: x\x1b[2J",
    ]
    assert gateway.methods() == ["GET /system/function/chat"]
    again = run("deploy", "-f", stack, "--filter", "chat", "--dry-run", "--json")
    assert json.loads(again.output)[0]["changes"] == [
        {"field": "labels.old", "before": "x\x1b[2J", "after": None}
    ]


def test_secrets_are_made_from_a_file_or_standard_input_and_never_shown(
    run: Run, gateway: FakeGateway, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(b"\x00\xffkey")
    assert run("secret", "create", "a", str(tmp_path / "key"), "-n", "dev").output == "Created a\n"
    assert json.loads(gateway.requests[-1][2]) == {
        "name": "a",
        "rawValue": "AP9rZXk=",
        "namespace": "dev",
    }
    assert run("secret", "create", "b", stdin="value").output == "Created b\n"
    assert run("secret", "create", "b", stdin="value").exit_code == 1
    assert run("secret", "update", "b", stdin="other").output == "Updated b\n"
    assert run("secret", "ls").output.splitlines() == ["NAME\tNAMESPACE", "a\tdev", "b"]
    assert run("secret", "rm", "b").output == "Removed b\n"
    absent = run("secret", "rm", "b")
    assert absent.exit_code == 1
    assert "Expected a secret 'b', found none." in absent.stderr


def test_namespaces_are_made_with_the_mark_of_openfaas_clients(
    run: Run, gateway: FakeGateway
) -> None:
    assert run("namespace", "create", "dev", "--label", "team=a=b").output == "Created dev\n"
    assert gateway.namespaces["dev"] == {
        "name": "dev",
        "labels": {"team": "a=b"},
        "annotations": {"openfaas": "1"},
    }
    assert run("namespace", "ls").output.splitlines() == ["NAME", "openfaas-fn", "dev"]
    assert "labels.team\ta=b" in run("namespace", "describe", "dev").output
    assert run("namespace", "create", "x", "--label", "team").exit_code == 1
    assert run("namespace", "rm", "dev").output == "Removed dev\n"
    assert "Expected a namespace 'dev'" in run("namespace", "rm", "dev").stderr


def test_a_name_from_afar_cannot_steer_the_terminal(run: Run, gateway: FakeGateway) -> None:
    gateway.functions["evil"] = {"name": "evil\x1b[2J\nfake\tok\u202e", "image": "\x9b1m"}
    (row,) = run("ls").output.splitlines()[1:]
    assert row.startswith("evil\\x1b[2J\\x0afake\\x09ok\\u202e\tcustom\t\\x9b1m")


def test_a_shell_is_offered_the_names_of_functions(
    gateway: FakeGateway, run: Run, stack: str
) -> None:
    run("deploy", "-f", stack, "--filter", "chat")
    environment = {
        "STOKER_GATEWAY": gateway.url,
        "STOKER_PASSWORD": PASSWORD,
        "_STOKER_COMPLETE": "bash_complete",
        "COMP_WORDS": "stoker describe c",
        "COMP_CWORD": "2",
    }
    offered = CliRunner().invoke(main, [], env=environment, prog_name="stoker")
    assert offered.output == "plain,chat\n"
    nobody = {**environment, "STOKER_GATEWAY": "http://127.0.0.1:1"}
    assert CliRunner().invoke(main, [], env=nobody, prog_name="stoker").output.strip() == ""


def test_deploy_prints_json(run: Run, stack: str) -> None:
    result = run("deploy", "-f", stack, "--json", "--filter", "chat", MODEL="s3://m/other")

    (deployed,) = json.loads(result.output)
    assert deployed["name"] == "chat"
    assert deployed["status"]["annotations"]["stoker/model"] == "s3://m/other"


def test_deploy_tells_the_cause_and_the_remedy_of_a_refusal(run: Run, stack: str) -> None:
    result = run("deploy", "-f", stack, "--filter", "chat", MODEL="s3://m/missing")

    assert result.exit_code == 1
    assert result.stderr == (
        "error: Expected a checkpoint at s3://m/missing, found none.\n"
        "remedy: Push it with `stoker model push`.\n"
    )


def test_a_failed_build_is_told_and_nothing_is_deployed(
    run: Run, gateway: FakeGateway, stack: str
) -> None:
    gateway.build_error = "no handle in handler.py"

    result = run("deploy", "-f", stack, "--filter", "echo")

    assert result.exit_code == 1
    assert "no handle in handler.py" in result.stderr
    assert gateway.functions == {}


def test_a_filter_that_matches_nothing_names_the_functions(run: Run, stack: str) -> None:
    result = run("deploy", "-f", stack, "--filter", "nope")

    assert result.exit_code == 1
    assert "found echo, chat" in result.stderr


def test_invoke_prints_the_body_it_was_given(run: Run, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"from a file")

    assert run("invoke", "echo", "--data", "hello").output == "hello"
    assert run("invoke", "echo", "--data", f"@{tmp_path / 'body'}").output == "from a file"
    assert run("invoke", "echo", "--data", "-", stdin="piped").output == "piped"


def test_invoke_streams_a_prompt_as_a_conversation(
    run: Run, gateway: FakeGateway, stack: str
) -> None:
    run("deploy", "-f", stack, "--filter", "chat")

    result = run("invoke", "chat", "--stream", "--data", "Say hello")

    assert (result.exit_code, result.output) == (0, "Hello\n")
    assert json.loads(gateway.requests[-1][2]) == {
        "model": "chat",
        "messages": [{"role": "user", "content": "Say hello"}],
        "stream": True,
    }


def test_invoke_shows_where_the_time_went(run: Run) -> None:
    result = run("invoke", "echo", "--data", "x", "--timing")

    assert result.stdout == "x"
    rows = [line.split("\t")[:2] for line in result.stderr.splitlines()]
    assert rows == [
        ["stage", "ms"],
        ["queue", "0.1"],
        ["load", "40.0"],
        ["prefill", "60.0"],
        ["total", "100.1"],
    ]


def test_a_function_that_fails_is_told_from_the_platform(run: Run) -> None:
    crashed = run("invoke", "crash", "--data", "x")
    absent = run("invoke", "none", "--data", "x")

    assert (crashed.exit_code, absent.exit_code) == (1, 1)
    assert "The function crash answered 500: Traceback: it broke" in crashed.stderr
    assert "remedy: Read its log with `stoker logs crash`." in crashed.stderr
    assert "Expected a function 'none', found none." in absent.stderr


def test_ls_is_tab_separated_in_a_pipe_and_json_on_request(run: Run, stack: str) -> None:
    run("deploy", "-f", stack, "--filter", "chat")

    assert run("ls").output.splitlines() == [
        "NAME\tTASK\tMODEL\tINVOCATIONS\tREPLICAS\tREADY",
        "chat\tchat\ts3://m/chat\t3\t0\t0",
    ]
    assert [f["name"] for f in json.loads(run("ls", "--json").output)] == ["chat"]


def test_ps_shows_instances_with_their_reason_and_nodes(run: Run) -> None:
    lines = run("ps").output.splitlines()

    assert lines[1].startswith("i-1\tchat.openfaas-fn\tfailed\tn-1\t127.0.0.1:9001\t77\t1m35s\t2\t")
    assert lines[1].endswith("\tThe worker died.")
    assert (
        lines[4] == "n-1\tyes\t2\t512.0 MiB / 3.0 GiB\t1.0 GiB / 8.0 GiB\tnot measured\t1.5 GiB/s"
    )
    assert set(json.loads(run("ps", "--json").output)) == {"instances", "nodes"}


def test_why_tells_in_words_where_a_request_went(run: Run) -> None:
    lines = run("why", "a-call").output.splitlines()

    assert lines[0] == (
        "chat.openfaas-fn went to node n-1 as instance 1-0, because it would start soonest there: "
        "its weights were on the disk there (policy stoker)."
    )
    assert lines[1:] == [
        "Predicted 1.000 s until it serves, took 1.250 s: off by 20.0%.",
        "  load     predicted 0.900 s, took 1.100 s",
        "Rejected 3 of the other nodes:",
        "  n-2: 8.000 s, slower",
        "  and 2 more",
    ]
    assert json.loads(run("why", "a-call", "--json").output)["node_id"] == "n-1"


def test_describe_shows_settings_and_instances(run: Run, stack: str) -> None:
    run("deploy", "-f", stack, "--filter", "chat")

    plain = run("describe", "chat").output
    assert "annotations.stoker/model\ts3://m/chat" in plain
    assert "instance i-1\tfailed n-1" in plain
    described = json.loads(run("describe", "chat", "--json").output)
    assert described["instances"][0]["instance_id"] == "i-1"


def test_scale_and_rm_reach_the_gateway_and_name_what_is_absent(
    run: Run, gateway: FakeGateway, stack: str
) -> None:
    run("deploy", "-f", stack, "--filter", "chat")

    assert run("scale", "chat", "0").output == "Scaled chat to 0\n"
    assert json.loads(gateway.requests[-1][2]) == {"serviceName": "chat", "replicas": 0}
    assert run("evict", "chat", "--disk").output == "Evicted chat\n"
    assert json.loads(gateway.requests[-1][2]) == {"serviceName": "chat", "disk": True}
    assert run("rm", "chat").output == "Removed chat\n"
    again = run("rm", "chat")
    assert again.exit_code == 1
    assert again.stderr.startswith("error: Expected a function 'chat', found none.\n")


def test_logs_prints_lines_and_passes_its_options(run: Run, gateway: FakeGateway) -> None:
    result = run("logs", "chat", "-f", "--tail", "5", "--since", "2026-01-01T00:00:00Z")

    assert result.output == "2026-01-01T00:00:00Z i-1 hello\n"
    assert gateway.requests[-1][1] == (
        "/system/logs?name=chat&tail=5&follow=1&since=2026-01-01T00%3A00%3A00%2B00%3A00"
    )


def test_a_wrong_password_and_no_gateway_have_a_remedy(run: Run) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        nobody = run("ls", "--gateway", url)

    assert nobody.exit_code == 1
    assert nobody.stderr == (
        f"error: Expected a gateway at {url}, found: connection refused.\n"
        "remedy: Start it with `stoker up`.\n"
    )
    refused = run("ls", STOKER_PASSWORD="wrong")
    assert refused.exit_code == 1
    assert "Set STOKER_PASSWORD" in refused.stderr


@pytest.mark.parametrize("url", ["localhost", "ftp://host", "http://host:port", "http://"])
def test_a_bad_gateway_url_is_refused(run: Run, url: str) -> None:
    result = run("ls", "--gateway", url)

    assert result.exit_code == 1
    assert "Expected a gateway URL" in result.stderr


def test_a_gateway_that_closes_at_once_is_told_in_one_sentence(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        result = run("ls", "--gateway", url)
        thread.join()

    assert result.exit_code == 1
    assert f"error: Expected a whole answer from {url}" in result.stderr


def test_the_password_is_found_in_the_state_directory(tmp_path: Path) -> None:
    (tmp_path / "auth").mkdir()
    (tmp_path / "auth" / "password").write_text("found\n")

    access = find_access(None, {"STOKER_STATE": str(tmp_path)})
    assert (access.url, access.password) == ("http://127.0.0.1:8080", "found")
    assert "found" not in repr(access)


def test_spans_ages_and_sizes_are_read_and_written_in_words() -> None:
    now = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
    assert since_timestamp("90s", now) == "2026-01-01T11:58:30+00:00"
    assert since_timestamp("", now) == ""
    with pytest.raises(BadRequest, match="found 'soon'"):
        since_timestamp("soon", now)
    assert [age_in_words(s) for s in (-1, 5, 95, 7260, 180000)] == [
        "0s",
        "5s",
        "1m35s",
        "2h1m",
        "2d2h",
    ]
    assert [bytes_in_words(b) for b in (12, 1536, 3 << 30)] == ["12 B", "1.5 KiB", "3.0 GiB"]


def test_a_table_on_a_terminal_has_aligned_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console.Console.is_terminal", True)

    print_table(("NAME", "STATE"), [("a-long-name", "serving"), ("b", "failed [red]")])

    header, *rows = capsys.readouterr().out.splitlines()
    assert "NAME" in header
    assert rows == ["a-long-name  serving", "b            failed [red]"]
