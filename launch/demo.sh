#!/usr/bin/env bash
# The whole path in one go: collection → shards → training over two processes → evaluation → report.
# DATA=DIR takes a real collection instead of phantoms, RECIPE=FILE says how it is laid out. Every command is shown.
set -euo pipefail
cd "$(dirname "$0")/.."

began=$SECONDS
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
runs=runs shards=shards/built

if [ -n "${DATA:-}" ]; then
  name=demo-$(basename "$DATA")
  config=configs/cpu_convnext.yaml
  say python -m brain_dist.shard build ${RECIPE:+--recipe "$RECIPE"} --source "$DATA" --out "$shards/$name"
else
  name=demo
  config=configs/demo.yaml
  say python -m brain_dist.shard phantom --out "$shards/phantoms" --patients 640 --slices 4 --size 128 --planes axial
  say python -m brain_dist.shard build --recipe shards/datasets/phantom.yaml --source "$shards/phantoms" --out "$shards/$name"
fi
say python launch/local.py -n 2 train --config "$config" --run.name "$name" --data.shards "$shards/$name"
say python launch/local.py -n 2 evaluate "$runs/$name"
say python -m brain_dist.shortcut "$shards/$name" --json "$runs/$name/predictions/shortcut.json"
say python -m brain_dist.report "$runs/$name"

printf '\nThe whole took %d s. Open %s\n' $((SECONDS - began)) "$PWD/$runs/$name/report/index.html"
