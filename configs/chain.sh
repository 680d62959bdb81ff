#!/usr/bin/env bash
# The papers' protocol from end to end: SFT -> pairs -> gold labels with noise -> proxy -> best-of-n against the gold.
#
#   bash configs/chain.sh [OUT]
#
# Offline, on the embedded world, a minute of one CPU core (58 s measured, 150 s by the clock on a busy machine). Each
# line stands on its own, and each name below can be set from outside: `NOISE=0 bash configs/chain.sh runs/clean`.
#
# For real models: SFT (a run of `grmlight fit --config configs/sft.yaml --config configs/policies/zephyr-7b.yaml`, say),
# PROMPTS, HELD_OUT and GOLD of your own, and configs/gemma-2b-it.yaml's `model` in configs/chain.yaml.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-runs/chain}
GRMLIGHT=${GRMLIGHT:-grmlight}

# The policy, where everything starts: a run, a folder or a hub name; empty trains one, by so many optimizer steps.
SFT=${SFT:-}
SFT_STEPS=${SFT_STEPS:-19}
# Stands for people: labels the pairs, and measures the curves. A class, or a reward model's folder.
GOLD=${GOLD:-grmlight.lab.GoldReward}
# Prompts to train on, the first so many, and others to measure on; of a file of pairs its prompts count.
PROMPTS=${PROMPTS:-grmlight/lab/assets/pairs/train.jsonl.gz}
TRAINED=${TRAINED:-500}
HELD_OUT=${HELD_OUT:-grmlight/lab/assets/pairs/id.jsonl.gz}
MEASURED=${MEASURED:-16}
# Share of labels that are flipped (Coste et al.: 0.25), and the seed of the flips, which is the data's own.
NOISE=${NOISE:-0.25}
NOISE_SEED=${NOISE_SEED:-0}
# Passes of the proxy over its pairs.
PROXY_EPOCHS=${PROXY_EPOCHS:-5}
# Answers a prompt, and largest n.
SAMPLES=${SAMPLES:-256}
MAX_N=${MAX_N:-128}

# A fit says where its model is.
fit() { $GRMLIGHT fit "$@" | tee >(cat >&2) | sed -n "s/^model: //p"; }
first() { zcat -f "$1" | sed -n "1,$2p"; }

mkdir -p "$OUT"
# 1. The SFT policy. The embedded world's LM was trained on its corpus alone: a few steps on chosen responses do.
[ -n "$SFT" ] || SFT=$(fit --config configs/sft.yaml --trainer.max_steps "$SFT_STEPS")
# 2. Two answers of the policy to each prompt, labeled by nobody yet.
first "$PROMPTS" "$TRAINED" > "$OUT/prompts.jsonl"
$GRMLIGHT bon --policy "$SFT" --prompts "$OUT/prompts.jsonl" --samples 2 --max_new_tokens 40 --seed 1 \
    --out "$OUT/sampled" --pairs "$OUT/pairs.jsonl"
# 3. The gold labels them; a quarter of the labels is flipped, and the flips are kept with the rows.
$GRMLIGHT relabel "$OUT/pairs.jsonl" --reward "$GOLD" --noise "$NOISE" --seed "$NOISE_SEED" --out "$OUT/train.jsonl"
# 4. The proxy learns from them.
PROXY=$(fit --config configs/grm.yaml --config configs/chain.yaml --trainer.max_epochs "$PROXY_EPOCHS" \
    --data.init_args.train "$OUT/train.jsonl")
# 5. Best-of-n of the policy by the proxy, on other prompts: does the gold follow?
first "$HELD_OUT" "$MEASURED" > "$OUT/held_out.jsonl"
$GRMLIGHT bon --policy "$SFT" --prompts "$OUT/held_out.jsonl" --samples "$SAMPLES" --max_new_tokens 40 --seed 2 \
    --reward proxy="$PROXY" --gold "$GOLD" --max_n "$MAX_N" --out "$OUT/curves"
echo "policy model: $SFT"
echo "proxy model: $PROXY"
echo "curves: $OUT/curves/curves.md, $OUT/curves/curves.png"
