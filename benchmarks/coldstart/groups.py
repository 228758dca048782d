"""One group of a round after another: each leaves the machine as it found it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cold_node  # noqa: F401 (it shows the way to the other benchmarks' modules)
import serving
import streams
from cold_node import PRIME_BYTES, ColdNode
from conditions import FIO_JOBS, fio, prime
from http_client import Answer, Failed
from install_peers import reason_of
from starts import FUNCTIONS, LONG_PROMPT_TOKENS, PEERS, PROMPT_TOKENS, STARTS, long_messages

OVERLAP_LOAD_SECONDS = 3.0
VECTOR_TOLERANCE = 1e-4
Taken = dict[str, Any]


@dataclass
class Groups:
    """`sources` is what a node exports to reach S3: directly, throttled, and for the overlap."""

    state: Path
    sources: Mapping[str, Mapping[str, str]]
    folders: Mapping[str, Path]
    draw: random.Random
    expected: dict[str, Answer] = field(default_factory=dict)
    uncached: set[str] = field(default_factory=lambda: set(PEERS))

    def measure(self, group: str) -> Taken:
        """The group's samples by key. Raises Failed."""
        if group in PEERS:
            return self.peer(group)
        measures: dict[str, Callable[[], Taken]] = {
            "node": self.node_starts,
            "s3_throttled": self.throttled,
            "overlap": self.overlap,
            "fresh_process": self.fresh_process,
            "streams": self.streams,
        }
        return measures[group]()

    @contextlib.contextmanager
    def node(self, source: str) -> Iterator[ColdNode]:
        node = ColdNode(self.state, self.sources[source])
        try:
            yield node
        finally:
            node.stop()

    def node_starts(self) -> Taken:
        """From everything absent to warm, at one node that is started once."""
        taken: Taken = {}
        with self.node("direct") as node:
            node.absent()
            for function in self._shuffled(FUNCTIONS):
                taken[f"{function} s3"] = [self._sample(node, function)]
            later = [start for start in STARTS if start != "s3"]
            cases = [(function, start) for function in FUNCTIONS for start in later]
            for function, start in self._shuffled(cases):
                samples = taken.setdefault(f"{function} {start}", [])
                for _ in range(STARTS[start]):
                    node.bring(function, start)
                    samples.append(self._sample(node, function))
            node.bring("chat", "parked")
            taken["zygote_memory"] = node.zygote_memory()
        return taken

    def throttled(self) -> Taken:
        taken: Taken = {}
        with self.node("throttled") as node:
            node.absent()
            for function in self._shuffled(FUNCTIONS):
                taken[f"{function} s3_throttled"] = [self._sample(node, function)]
                node.wait_for_copies()
        return taken

    def overlap(self) -> Taken:
        """A long prompt while the weights come, and what it takes when they are there."""
        with self.node("overlap") as node:
            node.absent()
            first = node.sample("chat", messages=long_messages(1))
            # Other prompts: of the same one, the cache would have most.
            warm = [node.sample("chat", messages=long_messages(seed)) for seed in (2, 3)]
            # Of another instance: this one would take most of the prompt from its cache.
            node.scale_to_zero("chat")
            again = node.ask("chat", messages=long_messages(1))
        for answer in (first, *warm, again):
            if answer.prompt_tokens != LONG_PROMPT_TOKENS:
                raise Failed(f"{LONG_PROMPT_TOKENS} tokens were {answer.prompt_tokens} tokens.")
        sample = {
            **first.sample(),
            # Not always: a prompt that the load holds up is one pass, any other is several.
            "same_answer": first.text == again.text,
            "load_ms": OVERLAP_LOAD_SECONDS * 1000,
            "prefill_ms": sum(answer.ttft_ms for answer in warm) / len(warm),
        }
        return {"chat overlap": [sample]}

    def fresh_process(self) -> Taken:
        """Plain transformers, with its files in the page cache and without."""
        _check_installed("transformers_serve")
        taken: Taken = {}
        for task in self._shuffled(FUNCTIONS):
            folder = self.folders[task]
            serving.measure_fresh_process(task, folder)
            for key, drops in (("fresh_process", False), ("fresh_process_cold", True)):
                if drops:
                    serving.drop_environment(folder)
                prime(PRIME_BYTES)
                sample = serving.measure_fresh_process(task, folder)
                self._check_fresh(task, sample)
                taken[f"{task} {key}"] = [sample]
        self.uncached.add("transformers_serve")
        return taken

    def peer(self, name: str) -> Taken:
        _check_installed(name)
        folder = self.folders["chat"]
        if name in self.uncached:
            serving.measure_server(name, folder)
            self.uncached.discard(name)
        prime(PRIME_BYTES)
        return {name: [serving.measure_server(name, folder)]}

    def streams(self) -> Taken:
        with self.node("direct") as node, streams.Alone(self.folders["chat"]) as alone:
            node.start()
            return {"streams": streams.measure(node, alone)}

    def device_bytes_per_second(self) -> float:
        """The fastest of fio's ways to read the model's file. Raises Failed."""
        path = self.folders["chat"] / "model.safetensors"
        try:
            seconds = min(fio(job, path)["seconds"] for job in FIO_JOBS)
        except OSError as error:
            raise Failed(str(error)) from error
        return path.stat().st_size / seconds

    def _sample(self, node: ColdNode, function: str) -> dict[str, Any]:
        """One measured request, whose answer is the one that all have given."""
        answer = node.sample(function)
        expected = self.expected.setdefault(function, answer)
        if function == "chat" and answer.prompt_tokens != PROMPT_TOKENS:
            raise Failed(f"{PROMPT_TOKENS} tokens were {answer.prompt_tokens} tokens.")
        if answer.text != expected.text or not _close(answer.vector, expected.vector):
            raise Failed(f"{function} answered {answer.text!r} after {expected.text!r}.")
        return answer.sample()

    def _check_fresh(self, task: str, sample: dict[str, Any]) -> None:
        vector = sample.pop("vector")
        expected = self.expected.get(task)
        if expected and not (
            expected.text.startswith(sample["text"]) and _close(vector, expected.vector)
        ):
            raise Failed(f"{task}: plain transformers answered {sample['text']!r}.")

    def _shuffled(self, items: Any) -> list[Any]:
        order = list(items)
        self.draw.shuffle(order)
        return order


def _check_installed(name: str) -> None:
    reason = reason_of(name)
    if reason is not None:
        raise Failed(f"It does not install: {reason}")


def _close(ours: Any, theirs: Any) -> bool:
    return len(ours) == len(theirs) and all(
        abs(a - b) <= VECTOR_TOLERANCE for a, b in zip(ours, theirs, strict=True)
    )
