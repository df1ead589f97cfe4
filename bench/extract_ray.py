"""`viq extract --ray` on two nodes of this machine, one of which is killed: equal to a run without Ray.

    python bench/extract_ray.py --items 3000 --out bench/results/extract_ray.json

It needs `ray[data]`. Images are those of `bench/extract.py`, 1 % of them damaged. The second node, of the same one
core as the first, is killed with SIGKILL once it has made a shard; then the driver itself is killed and started again.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from time import perf_counter
from typing import Any

import ray
from extract import digests, extract, make
from full_size import machine
from ray.cluster_utils import Cluster
from serving import VIQ


def started(source: Path, out: Path, shard_items: int, address: str) -> subprocess.Popen[str]:
    command = [str(VIQ), "extract", str(source / "*.tar"), "-o", str(out), "--shard-items", str(shard_items)]
    return subprocess.Popen(
        [sys.executable, *command, "--ray", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def shards(out: Path) -> int:
    return len(list(out.glob("codes-*.json")))


def reached(process: subprocess.Popen[str], out: Path, count: int) -> None:
    """Wait until so many shards are done; fails if the run ends before."""
    while shards(out) < count:
        assert process.poll() is None, process.communicate()
        threading.Event().wait(0.05)


def actors() -> dict[str, int]:
    """Living actors of each node."""
    from ray._private.state import actors as all_actors

    found: dict[str, int] = {}
    for one in all_actors(actor_state_name="ALIVE").values():
        if "ShardActor" in one["ActorClassName"]:
            found[one["Address"]["NodeID"]] = found.get(one["Address"]["NodeID"], 0) + 1
    return found


def run(source: Path, folder: Path, shard_items: int) -> dict[str, Any]:
    node = {"num_cpus": 1, "object_store_memory": 128 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=node)
    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        out, begun = folder / "ray", perf_counter()
        process = started(source, out, shard_items, cluster.address)
        reached(process, out, 1)
        spread: dict[str, int] = {}
        while len(spread) < 2:  # both nodes compute
            assert process.poll() is None, process.communicate()
            spread = actors()
        reached(process, out, shards(out) + 2)
        at_node = shards(out)
        cluster.remove_node(second, allow_graceful=False)
        reached(process, out, at_node + 2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        at_driver = shards(out)
        again = started(source, out, shard_items, cluster.address)
        said, complained = again.communicate()
        return {
            "actors_on_nodes": sorted(spread.values()),
            "shards_when_the_node_was_killed": at_node,
            "shards_when_the_driver_was_killed": at_driver,
            "exit_code": again.returncode,
            "said": said.splitlines()[-1:] or complained.splitlines()[-5:],
            "seconds": round(perf_counter() - begun, 1),
        }
    finally:
        ray.shutdown()
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--shard-items", type=int, default=150)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, whole = Path(name, "source"), Path(name, "whole")
        source.mkdir()
        make(source, args.items, [16, 32, 48, 64, 96])
        extract(source, whole, args.shard_items)
        result = {"machine": machine(), "items": args.items, **run(source, Path(name), args.shard_items)}
        wanted, found = digests(whole), digests(Path(name, "ray"))
        result["files"] = len(wanted)
        result["files_that_differ"] = sorted(n for n in {*wanted, *found} if wanted.get(n) != found.get(n))
        result["unfinished_left"] = len(list(Path(name, "ray").glob(".unfinished*")))
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(1 if result["files_that_differ"] or result["exit_code"] != 1 else 0)


if __name__ == "__main__":
    main()
