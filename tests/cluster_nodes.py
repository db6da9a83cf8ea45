"""Two Ray nodes in a network and PID namespace of their own; test_cluster.py runs this as the first process there.

Ray listens on every address that it is given, so a cluster of tests must not share a network with anything. Whatever is
still running ends with the namespace.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HEAD, WORKER = "10.99.0.1", "10.99.0.2"
PORT = 6379
MIXVAE = (sys.executable, "-m", "mixvae")
RAY = shutil.which("ray", path=str(Path(sys.executable).parent))


def wait_for(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.1)
    return value


def descendants(pid):
    """A process and all that it started, directly or not."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class Node:
    """A Ray node with one CPU."""

    def __init__(self, address, *options, prefix=(), **environment):
        self.process = subprocess.Popen(
            [*prefix, RAY, "start", *options, f"--node-ip-address={address}", "--num-cpus=1", "--num-gpus=0", "--block",
             "--object-store-memory=80000000", "--disable-usage-stats"],
            env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def cells(self):
        """Names of the cells that are trained here."""
        commands = [command_of(pid) for pid in descendants(self.process.pid)]
        return {Path(found[1]).stem for one in commands if (found := re.search(r"run_cell\S* (\S+\.yaml)", one))}

    def kill(self):
        """Lose the machine: every process of it at once."""
        for pid in descendants(self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def head():
    node = Node(HEAD, "--head", f"--port={PORT}", "--include-dashboard=false")
    wait_for(lambda: socket.socket().connect_ex((HEAD, PORT)) == 0, "the head")
    return node


def worker(**more):
    return Node(WORKER, f"--address={HEAD}:{PORT}", **more)


def nodes_alive():
    script = f"import ray; ray.init('{HEAD}:{PORT}', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return next((int(line) for line in done.stdout.splitlines() if line.isdigit()), 0)  # Ray may tell of lost nodes too


def epoch(folder, name):
    """Epochs that a cell has saved."""
    path = Path(folder) / name / "run.json"
    return json.loads(path.read_text())["progress"]["epoch"] if path.exists() else 0


def sweep(grid, *words):
    address = f"{HEAD}:{PORT}"
    return subprocess.Popen(
        [*MIXVAE, "sweep", grid, "--on", "ray", "--address", address, *words], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def lost(grid, folder):
    """A node is lost in mid-training, then the driver; both are followed by another."""
    nodes = [head(), worker()]
    wait_for(lambda: nodes_alive() == 2, "two nodes")
    first = sweep(grid)
    wait_for(lambda: epoch(folder, "a") > 2 and epoch(folder, "b") > 2, "both cells")
    [name] = nodes[1].cells()
    nodes[1].kill()
    assert nodes[0].cells() == {"a", "b"} - {name}
    killed_at = epoch(folder, name)
    wait_for(lambda: name in nodes[0].cells(), "the lost cell elsewhere")
    wait_for(lambda: epoch(folder, name) > killed_at, "its training")
    died_at = epoch(folder, name)
    first.kill()
    said = first.communicate()[1]
    second = sweep(grid)
    out, err = second.communicate()
    return {
        "lost": name, "epochs": [killed_at, died_at], "first": said, "status": second.returncode, "out": out,
        "second": err,
    }  # fmt: skip


def unfit(grid, folder):
    """A node with another version of mixvae, and then one that does not see the folder."""
    head()
    other = Path(folder) / "other" / "mixvae-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: mixvae\nVersion: 9.9\n")
    said = []
    for more in (
        {"PYTHONPATH": str(other.parent)},
        {"prefix": ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', folder)},
    ):
        node = worker(**more)
        wait_for(lambda: nodes_alive() == 2, "two nodes")
        driver = sweep(grid)
        out, err = driver.communicate()
        said.append({"status": driver.returncode, "out": out, "err": err})
        node.kill()
        wait_for(lambda: nodes_alive() == 1, "one node")
    return {"said": said, "left": sorted(str(path) for path in Path(folder).rglob("*") if "other" not in path.parts)}


if __name__ == "__main__":
    scenario, *words = sys.argv[1:]
    for line in ("link set lo up", f"addr add {HEAD}/24 dev lo", f"addr add {WORKER}/24 dev lo"):
        subprocess.run(["ip", *line.split()], check=True)
    print(json.dumps(globals()[scenario](*words)))
