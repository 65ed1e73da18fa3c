"""The documents: links lead somewhere; the commands, options, settings and files that they name exist."""

from __future__ import annotations

import functools
import importlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import get_type_hints

import pytest
from helpers import ROOT

from brain_dist.config import Config, load
from brain_dist.scalability.cases import MODES, integers, plan
from brain_dist.stream.plan import accumulation_steps

SUFFIXES = (".md", ".py", ".sh", ".yaml", ".json", ".toml", ".in", ".js", ".css", ".jinja", ".service", ".ipynb")
NOT_SEARCHED = ("runs", "built", "npm", "node_modules")  # and what begins with a dot
FILE = re.compile(
    r"(?<![\w./-])(?:benchmarks|brain_dist|configs|containers|examples|launch|shards/datasets|slurm|tests)/"
    r"[\w/.-]+\.\w+"
)
WRITTEN_BY_USERS = ("launch/site.sh",)
VERB = re.compile(
    r"(?:\bbrain-dist |-m brain_dist[. ]|launch/local\.py (?:-n \d+ )?|launch/hosts\.py HOSTFILE )([a-z]+)(?=\s|$)(.*)"
)
SUBCOMMANDS = ("shard", "benchmark", "scaling", "dicom")
SCRIPT = re.compile(r"\bsbatch (.*?)(slurm/(\w+)\.sh)(.*)")
VERB_OF_SCRIPT = {
    **{name: name for name in ("evaluate", "predict", "profile")},
    **{"train_convnext": "train", "train_baselines": "train", "build_shards": "shard build", "scaling": "scaling run"},
}
BENCHMARK = re.compile(r"-m benchmarks\.(\w+)(.*)")
SETTINGS = {f"{section}.{name}" for section, kind in get_type_hints(Config).items() for name in get_type_hints(kind)}


def files() -> Iterator[Path]:
    """All text files of the project."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in NOT_SEARCHED]
        yield from (Path(folder, name) for name in names if name.endswith(SUFFIXES))


FILES = sorted(files())
PAGES = [path for path in FILES if path.suffix == ".md"]
# of the present code; results and changes may name what earlier code had
CURRENT = [path for path in PAGES if path.parent.name != "results" and path.name != "CHANGELOG.md"]
COMMENTED = [path for path in FILES if path.parent.name == "slurm" or ROOT / "configs" in path.parents]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def code(path: Path) -> list[str]:
    """The lines of code in a page, or in the comments of a script or configuration, without their own comments."""
    text = path.read_text()
    if path.suffix == ".md":
        blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + [" ".join(span.split()) for span in spans]
    else:
        lines = re.sub(r"^# ?", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    lines = [re.sub(r"\s+#\s.*", "", line) for line in lines]
    return [part for line in lines for part in re.split(r" \| | && |;", line)]


def commands(path: Path) -> Iterator[tuple[str, str]]:
    """Verb, with its subcommand, and arguments of each command of the program in a page."""
    for line in code(path):
        if (match := SCRIPT.search(line)) and match[3] in VERB_OF_SCRIPT:
            yield VERB_OF_SCRIPT[match[3]], match[4]
        elif match := VERB.search(line):
            verb, arguments = match.groups()
            if verb in SUBCOMMANDS:
                subcommand, _, arguments = arguments.strip().partition(" ")
                verb = f"{verb} {subcommand}"
            yield verb, arguments


def options(arguments: str) -> list[str]:
    return re.findall(r"(?<!\S)--([a-zA-Z][\w.-]*)", arguments)


@functools.cache
def options_of(verb: str) -> set[str]:
    """The options in the help of a command."""
    if verb == "train":
        return {"config", "help"}
    name, *subcommand = verb.split()
    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        importlib.import_module(f"brain_dist.{name}").main([*subcommand, "--help"])
    return set(options(re.sub(r"[\[\](),|]", " ", text.getvalue())))


def problems(path: Path) -> list[str]:
    """The options and settings in the commands of a page that do not exist."""
    return [
        f"{verb} --{option}"
        for verb, arguments in commands(path)
        for option in options(arguments)
        if option not in (SETTINGS if "." in option else options_of(verb))
    ]


def test_no_file_has_the_marks_of_a_merge() -> None:
    marks = re.compile(r"^(<{7}|>{7}) ", re.MULTILINE)
    assert [name_of(path) for path in FILES if marks.search(path.read_text())] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_commands_have_the_options_and_settings_that_pages_give_them() -> None:
    known = [verb for path in (*CURRENT, *COMMENTED) for verb, _ in commands(path)]
    assert len(known) > 100
    assert {name_of(path): wrong for path in (*CURRENT, *COMMENTED) if (wrong := problems(path))} == {}


def test_a_misspelt_option_in_a_page_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```\nbrain-dist evaluate RUN --split val --spilt 1  # --x\n```\n`brain-dist train --optim.rl 1`\n")
    assert problems(page) == ["evaluate --spilt", "train --optim.rl"]


def test_benchmarks_that_pages_name_exist_with_their_options() -> None:
    shared = "".join(path.read_text() for path in (ROOT / "benchmarks" / "support").glob("*.py"))
    wrong = []
    for path in CURRENT:
        for line in code(path):
            if match := BENCHMARK.search(line):
                module = ROOT / "benchmarks" / f"{match[1]}.py"
                source = module.read_text() + shared if module.is_file() else ""
                missing = [option for option in options(match[2]) if f'"--{option}"' not in source]
                if missing or not source:
                    wrong.append(f"{name_of(path)}: {match[0]}")
    assert wrong == []


def test_files_and_recipes_that_pages_name_exist() -> None:
    wrong = []
    for path in (*CURRENT, *COMMENTED):
        text = "\n".join(code(path))
        named = set(FILE.findall(text)) - set(WRITTEN_BY_USERS)
        named |= {f"shards/datasets/{name}.yaml" for name in re.findall(r"--recipe ([a-z]\w*)(?=\s|$)", text)}
        wrong += [f"{name_of(path)}: {name}" for name in sorted(named) if not (ROOT / name).exists()]
    assert wrong == []


def submitted() -> list[tuple[str, str, str]]:
    """SLURM's options, script and arguments of each job with a training step that a page submits."""
    jobs = []
    for path in (*CURRENT, *COMMENTED):
        for line in code(path):
            match = SCRIPT.search(line)
            if match and match[3] in ("train_convnext", "train_baselines", "profile", "scaling"):
                jobs.append((match[1], match[2], match[4].replace("…", "")))
    return sorted(set(jobs))


@pytest.mark.parametrize(("slurm", "script", "arguments"), submitted())
def test_the_batches_of_submitted_jobs_divide_among_their_gpus(slurm: str, script: str, arguments: str) -> None:
    header = (ROOT / script).read_text()

    def count(name: str) -> int:
        return int(re.findall(rf"--{name}=(\d+)", header + slurm)[-1])

    own = dict(zip(words := shlex.split(arguments), words[1:], strict=False))
    settings = [word for name in own if name.startswith(("--train.", "--optim.")) for word in (name, own[name])]
    config = "configs/resnet50.yaml" if "baselines" in script else "configs/convnext_base.yaml"
    settings = ["--config", str(ROOT / config), "--data.shards", "x", *settings]
    nodes, gpus = count("nodes"), count("gpus-per-node")
    if "scaling" not in script:
        train = load(settings).train
        assert accumulation_steps(train.global_batch, train.micro_batch, nodes * gpus) >= 1
        return
    measured = integers("--nodes", own["--nodes"], minimum=1)
    assert max(measured) <= nodes
    stages = own.get("--zero", "2").split(",")
    configs = [load([*settings, "--train.zero_stage", stage]) for stage in stages]
    modes = [mode for mode in MODES if own.get("--mode", "both") in (mode, "both")]
    cases = plan(configs, nodes=measured, ranks_per_node=gpus, modes=modes, repeats=1)
    assert len(cases) == len(stages) * len(modes) * len(measured)
