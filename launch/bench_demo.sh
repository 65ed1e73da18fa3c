#!/usr/bin/env bash
# A small benchmark on phantoms: three networks × two seeds under the same conditions → table → comparison → page.
# Interrupted, it goes on when it is started again. Every command is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

start=$SECONDS
run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
shards=shards/built out=runs/bench-demo

run python -m brain_dist.shard phantom --out "$shards/bench-phantoms" --patients 240 --slices 2 --size 96 --planes axial
run python -m brain_dist.shard build --recipe shards/datasets/phantom.yaml --source "$shards/bench-phantoms" --out "$shards/bench-demo"
run python -m brain_dist.benchmark run "$out" --config configs/bench/demo.yaml --data.shards "$shards/bench-demo" \
  --models configs/bench/convnext_zepto.yaml,resnet10t,mobilenetv3_small_050 --seeds 0,1
run python -m brain_dist.compare --benchmark "$out" --out "$out/compared"
run python -m brain_dist.benchmark page "$out"

printf '\nFinished in %d s. Open %s\n' $((SECONDS - start)) "$PWD/$out/index.html and $PWD/$out/compared/index.html"
