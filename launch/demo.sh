#!/usr/bin/env bash
# The complete pipeline: collection → shards → training with two processes → evaluation → report.
# DATA=DIR uses a real collection instead of phantoms, with RECIPE=FILE as its layout. Every command is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

start=$SECONDS
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
runs=runs shards=shards/built

if [ -n "${DATA:-}" ]; then
  name=demo-$(basename "$DATA")
  config=configs/cpu_convnext.yaml
  run python -m brain_dist.shard build ${RECIPE:+--recipe "$RECIPE"} --source "$DATA" --out "$shards/$name"
else
  name=demo
  config=configs/demo.yaml
  run python -m brain_dist.shard phantom --out "$shards/phantoms" --patients 640 --slices 4 --size 128 --planes axial
  run python -m brain_dist.shard build --recipe shards/datasets/phantom.yaml --source "$shards/phantoms" --out "$shards/$name"
fi
run python launch/local.py -n 2 train --config "$config" --run.name "$name" --data.shards "$shards/$name"
run python launch/local.py -n 2 evaluate "$runs/$name"
run python -m brain_dist.shortcut "$shards/$name" --json "$runs/$name/predictions/shortcut.json"
run python -m brain_dist.report "$runs/$name"

printf '\nFinished in %d s. Open %s\n' $((SECONDS - start)) "$PWD/$runs/$name/report/index.html"
