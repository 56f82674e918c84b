"""Train on two hosts, kill a process of one, and compare how it ends with a training that was not killed.

    python benchmarks/soak_hosts.py          # as root: it makes two network namespaces, and removes them

The hosts are network namespaces of this machine, joined by a pair of virtual interfaces, with a torchrun each; they
share the file system, as two hosts of a cluster do. A training process on the second host gets SIGKILL; the training
must go on by itself, and end with weights, optimizer and results that are to the bit what they would have been.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, List

from tests.conftest import ROOT
from tests.engine.kills import configured, differences, last_iteration, outcome, run_to_the_end, write_dataset

NAMES = ("eql_d2_a", "eql_d2_b")
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def two_hosts():
    """Make the namespaces and connect them; remove them in the end."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", NAMES[0], "type", "veth", "peer", "name", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            for device in ("lo", name):
                ip("-n", name, "link", "set", device, "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def start(host: int, config: Path) -> "subprocess.Popen[Any]":
    """Start a host's torchrun in a session of its own."""
    command = ["ip", "netns", "exec", NAMES[host], sys.executable, "-m", "torch.distributed.run", "--nnodes=2"]
    command += ["--nproc-per-node=1", "--max-restarts=5", "--rdzv-backend=c10d", "--rdzv-id=soak"]
    command += [f"--rdzv-endpoint={ADDRESSES[0]}:29533", f"--local-addr={ADDRESSES[host]}"]
    command += [f"--rdzv-conf=is_host={1 - host}"]
    command += ["tools/train_net.py", "--config-file", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": NAMES[host]}
    with open(config.parent / f"host{host}.txt", "a") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)


def children(pid: int) -> List[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def kill_host(agent: "subprocess.Popen[Any]") -> None:
    """Kill a torchrun and its training process, whose session is another."""
    with contextlib.suppress(OSError):
        for pid in [*children(agent.pid), agent.pid]:
            os.kill(pid, signal.SIGKILL)
    agent.wait()


def wait_for_checkpoints(cfg: Any, count: int, agents: List[Any]) -> None:
    """Wait until so many more checkpoints are written."""
    seen, deadline = last_iteration(cfg), time.monotonic() + 300
    while count:
        if last_iteration(cfg) != seen:
            seen, count = last_iteration(cfg), count - 1
        if any(agent.poll() is not None for agent in agents) or time.monotonic() > deadline:
            raise SystemExit(f"error: the training has ended or hangs at iteration {seen}.")
        time.sleep(0.05)


def main():
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if os.geteuid():
        sys.exit("error: network namespaces need root; nothing was run.")
    with tempfile.TemporaryDirectory() as name, two_hosts():
        folder = Path(name)
        write_dataset(folder, 24)
        opts = ["DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 20, "TEST.EVAL_PERIOD", 0]
        whole, killed = (configured(folder, output, *opts) for output in ("whole", "killed"))
        run_to_the_end(whole, folder, 2, kills=0)
        (folder / "hosts.yaml").write_text(killed.dump())
        agents = [start(host, folder / "hosts.yaml") for host in (0, 1)]
        try:
            wait_for_checkpoints(killed, 2, agents)
            os.kill(children(agents[1].pid)[-1], signal.SIGKILL)
            began = time.monotonic()
            wait_for_checkpoints(killed, 2, agents)
            print(f"A process was killed: two checkpoints further {time.monotonic() - began:.0f} s later.", flush=True)
            statuses = [agent.wait(600) for agent in agents]
        finally:
            for agent in agents:
                kill_host(agent)
            for host in (0, 1):
                print(f"host {host}:\n{(folder / f'host{host}.txt').read_text()[-2000:]}", file=sys.stderr)
        # A process that ends because another is gone writes its metrics up to then: lines that are more.
        found = [name for name in differences(outcome(whole), outcome(killed)) if not name.startswith("/history")]
        print(f"The hosts ended with {statuses}: {f'differs in {found[:5]}' if found else 'the same to the bit'}.")
        sys.exit(bool(found or any(statuses)))


if __name__ == "__main__":
    main()
