"""Check and measure the product on one GPU, within a time budget; run it in the root of the checkout.

    python benchmarks/gpu_check.py --kit DIR --out DIR [--budget SECONDS] [--only STAGE,…]
    python benchmarks/gpu_check.py --kit DIR --out DIR --dry

``--dry`` does the same with small sizes on the CPU, which tests the check itself.

Each stage runs in its own process with a time limit. It appends its results as JSON rows to OUT/results.jsonl at once,
and to KIT/results.jsonl, which is kept between calls. Stages that KIT/done names are not repeated, so another call
continues. KIT may contain images (data/real256 and data/raw512, shard folders) and packages that this machine lacks
(site, dali). Without images, phantoms are generated. This process itself needs only Python.
The exit code is 1 if a measurement failed or a check is not ok.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))  # a copy of this file may be stored outside benchmarks/

from benchmarks.gpu.frame import RESULTS, Check
from benchmarks.gpu.stages import STAGES

DRY_FACTOR = 8  # a dry stage may take this many times its limit
LOG_CHARACTERS = 60_000  # of each stage, in OUT/logs.txt
NOT_PRINTED = ("t", "where", "log", "took", "top")  # columns of results.jsonl


def main() -> int:
    """Run the stages that are not done, or one stage in this process."""
    arguments = parse_arguments()
    if not (arguments.dry or shutil.which("nvidia-smi") or list(Path("/dev").glob("nvidia*"))):
        print("gpu_check: error: this machine has no NVIDIA GPU; use --dry for a run on the CPU", file=sys.stderr)
        return 2
    for folder in (arguments.kit, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    arguments.kit, arguments.out = arguments.kit.resolve(), arguments.out.resolve()
    if arguments.stage:
        STAGES[arguments.stage].run(new_check(arguments, arguments.stage, arguments.limit))
        return 0
    run_stages(arguments)
    print_results(arguments.out / RESULTS)
    if not arguments.dry:
        collect_logs(arguments)
    failed = failures(arguments.out / RESULTS)
    for text in failed:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kit", type=Path, default=Path("/tmp/kit"), help="folder that is kept between calls")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")), help="folder for the results")
    parser.add_argument("--budget", type=float, default=560, help="seconds for all stages (default: 560)")
    parser.add_argument("--only", type=stage_names, default=list(STAGES), help=f"stages, of {','.join(STAGES)}")
    parser.add_argument("--again", action="store_true", help="repeat stages that are done")
    parser.add_argument("--dry", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--stage", default="", choices=("", *STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, default=60, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kit.resolve() == arguments.out.resolve():
        parser.error("--kit and --out must be different folders")
    return arguments


def stage_names(text: str) -> list[str]:
    """Parse ``facts,step``."""
    names = text.split(",") if text else list(STAGES)
    unknown = [name for name in names if name not in STAGES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such stage: {', '.join(unknown)}; use some of {', '.join(STAGES)}")
    return names


def new_check(arguments: argparse.Namespace, stage: str, seconds: float) -> Check:
    """What a stage needs, from the command line."""
    return Check(stage, arguments.kit, arguments.out, arguments.dry, seconds)


def run_stages(arguments: argparse.Namespace) -> None:
    """Run the selected stages that are not done, as long as the budget lasts."""
    start, done_file = time.monotonic(), arguments.kit / "done"
    done = set() if arguments.again or not done_file.exists() else set(done_file.read_text().split())
    (arguments.kit / RESULTS).touch()
    shutil.copyfile(arguments.kit / RESULTS, arguments.out / RESULTS)
    generate_phantoms(arguments)
    for name in arguments.only:
        left = arguments.budget - (time.monotonic() - start)
        if name in done or left < STAGES[name].least:
            print(f"== {name}: {'done before' if name in done else 'no time left'}", flush=True)
            continue
        limit = min(STAGES[name].limit * (DRY_FACTOR if arguments.dry else 1), left - 8)
        run_stage(arguments, name, limit)
        with done_file.open("a") as file:
            file.write(name + "\n")


def run_stage(arguments: argparse.Namespace, name: str, limit: float) -> None:
    """Run a stage in its own process, end it after ``limit`` seconds, and record how it ended."""
    start, log = time.monotonic(), log_path(arguments, name)
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--stage", name, "--limit", str(limit)]
    command += ["--kit", str(arguments.kit), "--out", str(arguments.out), *(["--dry"] if arguments.dry else [])]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment(arguments), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | str = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = "time is up"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        process.wait()
    output = {} if code == 0 else {"log": log.read_text(errors="replace")[-1200:]}
    seconds = round(time.monotonic() - start, 1)
    new_check(arguments, name, limit).record(what="stage ends", code=code, seconds=seconds, **output)


def environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Environment of the stages: the kit's packages, caches in the kit, no network."""
    kit = arguments.kit
    paths = [str(Path.cwd()), str(kit / "site"), str(kit / "dali"), os.environ.get("PYTHONPATH", "")]
    variables = {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONPYCACHEPREFIX": str(kit / "pyc"),
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(kit / "inductor"),
        "TRITON_CACHE_DIR": str(kit / "triton"),
        "NCCL_SOCKET_IFNAME": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
        "DEEPSPEED_LOG_LEVEL": "error",
    }
    if arguments.dry:
        variables |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **variables}


def generate_phantoms(arguments: argparse.Namespace) -> None:
    """Build shards of phantoms in the kit if it has no images and a selected stage needs some."""
    shards = new_check(arguments, "", 0).shards
    if shards.is_dir() or set(arguments.only) <= {"facts", "zero", "peercompile"}:
        return
    images = arguments.kit / "phantoms"
    shutil.rmtree(images, ignore_errors=True)
    size = ["--patients", "200", "--slices", "4", "--size", "256", "--seed", "0"]
    for options in (["phantom", "--out", images, *size], ["build", "--source", images, "--out", shards]):
        command = [sys.executable, "-m", "brain_dist.shard", *map(str, options)]
        subprocess.run(command, env=environment(arguments), stdout=subprocess.DEVNULL, check=False)


def log_path(arguments: argparse.Namespace, stage: str) -> Path:
    """File for the output of a stage."""
    return (arguments.out if arguments.dry else arguments.kit) / f"{stage}.log"


def collect_logs(arguments: argparse.Namespace) -> None:
    """Write the end of each stage's output to OUT/logs.txt."""
    logs = {name: log_path(arguments, name) for name in STAGES}
    texts = [
        f"\n=== {name}\n{log.read_text(errors='replace')[-LOG_CHARACTERS:]}"
        for name, log in logs.items()
        if log.exists()
    ]
    (arguments.out / "logs.txt").write_text("".join(texts))


def failures(path: Path) -> list[str]:
    """The measurements that raised an error, the checks that are not ok, and the stages that were ended or failed."""
    texts = []
    for row in map(json.loads, path.read_text().splitlines()):
        if "error" in row or row.get("ok") is False or row.get("code", 0) != 0:
            texts.append(f"{row['stage']}: {row['what']}: {row.get('error') or row.get('code') or 'not ok'}"[:300])
    return texts


def print_results(path: Path) -> None:
    """Print the numbers of every row, one line per row."""
    for line in path.read_text().splitlines():
        row = json.loads(line)
        cells = [
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in row.items()
            if name not in NOT_PRINTED and not isinstance(value, (dict, list))
        ]
        print(" ".join(cells)[:300])


if __name__ == "__main__":
    raise SystemExit(main())
