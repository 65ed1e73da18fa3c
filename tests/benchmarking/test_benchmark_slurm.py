"""Whether an earlier array of a benchmark still runs, asked of the real squeue."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from damage import DAMAGES, damage
from helpers import ROOT

from brain_dist.benchmarking.folder import Folder
from brain_dist.benchmarking.slurm import JOB, require_slurm, submitted_job
from brain_dist.errors import Fault, UserError


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_record_of_an_array_is_named(tmp_path: Path, kind: str) -> None:
    assert submitted_job(Folder(tmp_path)) is None
    (tmp_path / JOB).write_text(json.dumps({"job": "17", "cells": []}))
    assert submitted_job(Folder(tmp_path)) == "17"
    damage(tmp_path / JOB, kind)
    with pytest.raises(UserError, match=r"slurm\.json is damaged \(.*\); delete it if `squeue --me` lists no array"):
        submitted_job(Folder(tmp_path))


@pytest.mark.skipif(not shutil.which("squeue"), reason="SLURM is not installed")
@pytest.mark.slow
def test_an_array_is_not_submitted_again_while_slurm_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "absent.conf"))
    require_slurm(Folder(tmp_path))  # nothing was submitted
    (tmp_path / JOB).write_text(json.dumps({"job": "17", "cells": []}))
    with pytest.raises(Fault, match="whether job 17 of this benchmark still runs is not known, because squeue failed"):
        require_slurm(Folder(tmp_path))
