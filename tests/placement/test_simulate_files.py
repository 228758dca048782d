import gzip
from pathlib import Path
from typing import Any

import pytest

from stoker.placement.errors import BadSpec
from stoker.placement.simulate_files import (
    cluster_of,
    read_cluster,
    read_lengths,
    read_names,
    read_trace,
)


def test_a_cluster_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "nodes:\n  - {count: 3, devices: 4, dram_bytes: 5e11, zone: z}\n"
        "functions:\n  - {name: opt, count: 2, weight_bytes: 13.4e9, devices: 1}\n"
    )
    found = read_cluster(path)
    assert [node.node_id for node in found.nodes] == ["node0-0", "node0-1", "node0-2"]
    assert {(node.device_count, node.dram_bytes, node.zone) for node in found.nodes} == {
        (4, 500_000_000_000, "z")
    }
    assert [record.key for record in found.functions] == ["opt-0.sim", "opt-1.sim"]
    assert found.functions[0].devices[0].count == 1


def test_weights_lie_round_robin_on_disks_that_have_room() -> None:
    described = {
        "nodes": [{"count": 3, "ssd_bytes": 250}],
        "functions": [{"name": "m", "count": 4, "weight_bytes": 100, "ssd_copies": 1}],
    }
    nodes = cluster_of(described, "here").world().nodes.values()
    assert [sorted(node.ssd) for node in nodes] == [["m-0", "m-3"], ["m-1"], ["m-2"]]
    described["functions"] = [{"name": "m", "count": 4, "weight_bytes": 100}]
    nodes = cluster_of(described, "here").world().nodes.values()
    assert [len(node.ssd) for node in nodes] == [2, 2, 2]


@pytest.mark.parametrize(
    ("described", "named"),
    [
        ([], "object"),
        ({}, "nodes"),
        ({"nodes": {}}, "list"),
        ({"nodes": [{"gpus": 4}]}, "gpus"),
        ({"nodes": [{"dram_bytes": "much"}]}, "dram_bytes"),
        ({"nodes": [{"dram_bytes": -1}]}, "dram_bytes"),
        ({"nodes": [{"count": 1.5}]}, "count"),
        ({"nodes": [{}], "functions": ["f"]}, r"functions\[0\]"),
    ],
)
def test_what_is_no_cluster_is_refused_by_its_place(described: Any, named: str) -> None:
    with pytest.raises(BadSpec, match=named):
        cluster_of(described, "cluster.yaml")


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes: [")
    with pytest.raises(BadSpec, match="YAML"):
        read_cluster(path)


FUNCTIONS = cluster_of(
    {"nodes": [{}], "functions": [{"name": "f", "count": 2, "token_seconds": 0.5}]}, "here"
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_sorted_and_begins_at_zero(tmp_path: Path) -> None:
    path = write(tmp_path, "t_s,function,seconds,output_tokens\n7,f-1,,4\n5,f-0,1.5,9\n")
    found = read_trace(path, FUNCTIONS.made_functions())
    assert [(r.arrived_at, r.function.record.name, r.left_seconds) for r in found] == [
        (0.0, "f-0", 1.5),
        (2.0, "f-1", 2.0),
    ]
    assert read_names(path) == ["f-0", "f-1"]


def test_the_columns_of_public_traces_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    with gzip.open(path, "wt") as out:
        out.write("app,func,start_s,duration_s\nA,f-0,0.001,0.078\nA,f-1,0.004,57.154\n")
    found = read_trace(path, FUNCTIONS.made_functions())
    assert [request.left_seconds for request in found] == [0.078, 57.154]


def test_rows_without_a_function_are_given_one_by_popularity(tmp_path: Path) -> None:
    path = write(tmp_path, "t_s,prompt_tokens,output_tokens\n" + "1,10,20\n" * 400)
    functions = FUNCTIONS.made_functions()
    names = [r.function.record.name for r in read_trace(path, functions, seed=1, zipf=2.0)]
    assert names.count("f-0") == pytest.approx(320, abs=40)
    assert names == [r.function.record.name for r in read_trace(path, functions, seed=1, zipf=2.0)]
    assert read_lengths(path)[0] == (10, 20)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("t_s,function\nx,f-0\n", ":2"),
        ("t_s,function\n1,f-0\n-1,f-0\n", ":3"),
        ("t_s,function\n1,other\n", "'other'"),
        ("t_s,function\n", "none"),
        ("function\nf-0\n", "t_s"),
    ],
)
def test_a_row_that_is_none_is_refused_by_its_line(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(BadSpec, match=named):
        read_trace(write(tmp_path, text), FUNCTIONS.made_functions())


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(BadSpec, match="CSV"):
        read_trace(path, FUNCTIONS.made_functions())
