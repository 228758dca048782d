from __future__ import annotations

import asyncio
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from harness.instances import (
    CALLED,
    FUNCTION,
    MODEL,
    SERVING,
    FakeCheckpoint,
    FakeParked,
    World,
    in_world,
)
from stoker.placement.errors import (
    CheckpointMissing,
    ChunkCorrupt,
    FunctionNotFound,
    InstanceLost,
    StartFailed,
    StokerError,
)
from stoker.placement.instance_token import instance_token
from stoker.placement.records import CheckpointRef, FunctionRecord
from stoker.placement.spec_probes import HEALTH
from stoker.placement.timeouts import Timeouts
from stoker.runtime import instance as instance_module
from stoker.runtime.secret_files import packed


def test_a_life_from_start_to_stop(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        worker = await world.serving()
        worker.write(b"hello\nunfinished")
        world.instance.stop()
        await world.end()
        assert worker.signals == [signal.SIGTERM]

    world = in_world(tmp_path, story)
    assert world.states == ["starting", "serving", "stopping"]
    assert world.init_seconds == [0.25]
    record = world.instance.record
    assert record.init_seconds == 0.25
    assert 0.25 < record.process_seconds < 0.25 + record.start_seconds
    assert world.instance.record.pid == 4242
    assert "hello" in world.texts()
    assert "unfinished" in world.texts()
    assert world.texts()[0] == "instance 1-1 starting"
    assert not (tmp_path / "run/instances/1-1").exists()


def test_the_process_that_is_parked_for_the_function_gets_the_start(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        parked = world.parked
        assert parked is not None
        await world.until("starting")
        while parked.begun is None:
            await asyncio.sleep(0.005)
        worker = parked.begun
        worker.say(SERVING)
        await world.until("serving")
        assert worker.start.work_dir == str(parked.work_dir)
        assert worker.start.sandbox.groups == ("/group/tasks",)
        assert worker.start.token == instance_token("token", "1-1")
        assert (worker.descriptor_count, world.forked.is_set()) == (5, False)
        assert world.wished == [worker.start]
        world.instance.stop()
        await world.end()
        assert worker.signals == [signal.SIGTERM]
        assert not parked.work_dir.exists()

    in_world(tmp_path, story, MODEL, lambda: FakeParked(tmp_path))


def test_where_the_parked_process_has_died_another_is_forked_in_its_place(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        parked = world.parked
        assert parked is not None
        worker = await world.serving()
        assert worker.start.work_dir == str(parked.work_dir)
        world.instance.stop()
        await world.end()
        assert parked.killed

    in_world(tmp_path, story, parked=lambda: FakeParked(tmp_path, is_dead=True))


def test_a_parked_process_that_never_gets_its_start_is_ended(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        parked = world.parked
        assert parked is not None

        def missing() -> FakeCheckpoint:
            raise CheckpointMissing("Nothing is at file:///m.")

        world.opens = missing
        await world.end()
        assert parked.killed
        assert world.states[-1] == "failed"

    in_world(tmp_path, story, MODEL, lambda: FakeParked(tmp_path))


def test_after_the_fork_the_agents_copy_of_the_socket_is_closed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        worker = await world.serving()
        assert world.listening.fileno() == -1
        host, port = world.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5):
            worker.exit(0)
        await world.end()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=5)

    in_world(tmp_path, story)


def test_a_model_is_forked_while_its_bytes_still_flow(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        worker = await world.serving()
        assert not world.checkpoint.loaded.is_set()
        assert worker.descriptor_count == 5
        assert worker.start.checkpoint is not None
        assert worker.start.checkpoint.chunks == (3, 1)
        world.instance.stop()
        await world.end()
        assert await asyncio.to_thread(world.checkpoint.closed.wait, 5)

    in_world(tmp_path, story, MODEL)


@pytest.mark.parametrize(
    ("said", "settled_seconds", "status", "how", "error"),
    [
        (SERVING, 10.0, 3, "ended with exit code 3", StartFailed),
        (SERVING, 0.0, 3, "ended with exit code 3", InstanceLost),
        # It may be called before its weights are all there.
        (CALLED, 10.0, -9, "died of signal 9", InstanceLost),
    ],
)
def test_a_worker_that_dies_says_how_and_uncalled_at_once_it_has_not_started(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: dict[str, Any],
    settled_seconds: float,
    status: int,
    how: str,
    error: type[StokerError],
) -> None:
    monkeypatch.setattr(instance_module, "SETTLED_SECONDS", settled_seconds)

    async def story(world: World) -> None:
        worker = await world.said(said)
        worker.exit(status)
        await world.end()

    world = in_world(tmp_path, story)
    assert world.states[-1] == "failed"
    (failure,) = world.failures
    assert failure["code"] == error.code
    assert "worker pid 4242" in failure["cause"]
    assert how in failure["cause"]
    assert any(how in text for text in world.texts())


def test_a_workers_last_words_outrank_how_it_ended(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.forked.wait()
        assert world.worker is not None
        wire = StartFailed("No handler.py was found.").to_wire()
        world.worker.say({"event": "failed", "error": wire})
        world.worker.exit(1)
        await world.end()

    world = in_world(tmp_path, story)
    assert world.failures == [StartFailed("No handler.py was found.").to_wire()]


def test_a_failed_load_gives_the_worker_two_seconds_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "FAREWELL_SECONDS_MAXIMUM", 0.05)

    async def story(world: World) -> None:
        world.ignores.add(signal.SIGTERM)
        world.checkpoint.failure = ChunkCorrupt("Chunk 3 is not what it was.", expected="a")
        await world.forked.wait()
        world.checkpoint.loaded.set()
        await world.end()
        assert world.worker is not None
        assert world.worker.signals == [signal.SIGTERM, signal.SIGKILL]

    world = in_world(tmp_path, story, MODEL)
    assert world.failures[0]["code"] == ChunkCorrupt.code
    assert world.failures[0]["details"] == {"expected": "a"}


def test_an_adapter_is_opened_and_handed_over_beside_its_model(tmp_path: Path) -> None:
    adapter = CheckpointRef("file:///a", "b" * 64, 10, False)

    async def story(world: World) -> None:
        worker = await world.serving()
        assert worker.start.descriptor_names[3:] == ("pool", "progress", "adapter_progress")
        assert worker.descriptor_count == 6
        assert worker.start.adapter is not None
        assert worker.start.adapter.digest == adapter.digest
        world.instance.stop()
        await world.end()
        assert world.opened_for == [MODEL.checkpoint, adapter]

    in_world(tmp_path, story, replace(MODEL, adapter=adapter))


def test_a_checkpoint_that_does_not_open_fails_the_record_before_the_socket_closes(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        def missing() -> FakeCheckpoint:
            raise CheckpointMissing("Nothing is at file:///m.")

        world.opens = missing
        await world.end()
        assert world.listening.fileno() == -1

    world = in_world(tmp_path, story, MODEL)
    assert world.failures[0]["code"] == CheckpointMissing.code
    assert world.socket_open_at_failure
    assert world.worker is None


@pytest.mark.parametrize("place", ["function", "fork"])
def test_a_start_that_fails_before_the_fork_is_told_with_its_cause(
    tmp_path: Path, place: str
) -> None:
    async def story(world: World) -> None:
        if place == "function":
            world.function = FunctionNotFound("It is gone.")
        else:
            world.fork_error = FunctionNotFound("It is gone.")
        await world.end()

    assert in_world(tmp_path, story, MODEL).failures[0]["cause"] == "It is gone."


def test_stopping_during_the_open_closes_what_is_opened_too_late(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        opening, go_on = Event(), Event()

        def slow() -> FakeCheckpoint:
            opening.set()
            assert go_on.wait(5)
            return world.checkpoint

        world.opens = slow
        assert await asyncio.to_thread(opening.wait, 5)
        world.instance.stop()
        await asyncio.wait_for(world.task, 5)
        go_on.set()
        assert await asyncio.to_thread(world.checkpoint.closed.wait, 5)
        assert world.worker is None
        await world.end()

    assert in_world(tmp_path, story, MODEL).states == ["starting", "stopping"]


def test_a_worker_that_does_not_drain_in_time_is_killed(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.ignores.add(signal.SIGTERM)
        worker = await world.serving()
        world.instance.stop(0.05)
        await world.end()
        assert worker.signals == [signal.SIGTERM, signal.SIGKILL]

    in_world(tmp_path, story)


def test_a_worker_that_never_serves_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instance_module, "STARTUP_SECONDS_MAXIMUM", 0.1)

    async def story(world: World) -> None:
        await world.end()

    world = in_world(tmp_path, story)
    assert "to serve within 0.1 s" in world.failures[0]["cause"]


def test_a_line_that_is_no_status_fails_the_start(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await world.forked.wait()
        assert world.worker is not None
        world.worker.say({"event": "dancing"})
        await world.end()

    assert in_world(tmp_path, story).failures[0]["code"] == StartFailed.code


def test_running_requests_get_as_long_as_the_function_lets_a_request_take(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.ignores.add(signal.SIGTERM)
        worker = await world.serving()
        world.instance.stop()
        await world.end()
        assert worker.signals == [signal.SIGTERM, signal.SIGKILL]

    in_world(tmp_path, story, replace(FUNCTION, timeouts=Timeouts(0.05)))


def test_secrets_are_handed_over_beside_the_socket_and_forgotten(tmp_path: Path) -> None:
    function = replace(FUNCTION, secrets=("key",))
    given: list[int] = []

    def open_secrets(asked: FunctionRecord) -> int:
        assert asked == function
        given.append(packed({"key": b"value"}))
        return given[-1]

    async def story(world: World) -> None:
        world.open_secrets = open_secrets
        worker = await world.serving()
        assert worker.descriptor_count == len(worker.start.descriptor_names) == 4
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(given[0])
        world.instance.stop()
        await world.end()
        assert "value" not in str(world.texts())

    in_world(tmp_path, story, function)


def test_a_secret_that_is_gone_fails_the_start_by_its_name(tmp_path: Path) -> None:
    def open_secrets(asked: FunctionRecord) -> int:
        raise StartFailed("Expected the secret key, found that it was deleted.")

    async def story(world: World) -> None:
        world.open_secrets = open_secrets
        await world.end()
        assert [failure["cause"] for failure in world.failures] == [
            "Expected the secret key, found that it was deleted."
        ]

    in_world(tmp_path, story, replace(FUNCTION, secrets=("key",)))


def test_an_instance_that_serves_but_does_not_answer_its_health_path_is_ended(
    tmp_path: Path,
) -> None:
    settings = {"path": "/live", "periodSeconds": "0.1", "timeoutSeconds": "0.05"}
    annotations = {HEALTH + key: value for key, value in settings.items()}

    async def story(world: World) -> None:
        worker = await world.serving()  # it has its socket, and never answers
        await world.end()
        assert worker.signals == [signal.SIGTERM]
        (failure,) = world.failures
        assert failure["code"] == StartFailed.code
        assert "GET /live" in failure["cause"]
        assert "3 times in a row: no answer" in failure["cause"]

    in_world(tmp_path, story, replace(FUNCTION, annotations=annotations))
