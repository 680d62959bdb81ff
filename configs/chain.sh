#!/usr/bin/env bash
# The papers' protocol from end to end: policy -> pairs -> gold labels with noise -> proxy -> best-of-n against the gold.
#
#   bash configs/chain.sh [OUT]
#
# Offline, on the embedded world, in under four minutes on two cores. Each line stands on its own: for real models name
# your SFT run, your prompts and a gold reward model, and add --config configs/gemma-2b-it.yaml to the fit.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-runs/chain}
GRMLIGHT=${GRMLIGHT:-grmlight}

# The SFT policy, where everything starts: a run of `grmlight fit --config configs/sft.yaml` goes here. The embedded
# world's LM was trained on its corpus alone and is one already.
SFT=${SFT:-package:grmlight.lab/assets/lm}
# Stands for people: labels the pairs, and measures the curves. A class, or a reward model's folder.
GOLD=${GOLD:-grmlight.lab.GoldReward}
# Prompts to train on, and others to measure on; of a file of pairs its prompts count.
PROMPTS=${PROMPTS:-grmlight/lab/assets/pairs/train.jsonl.gz}
HELD_OUT=${HELD_OUT:-grmlight/lab/assets/pairs/id.jsonl.gz}
# Share of labels that are flipped (Coste et al.: 0.25), and the seed of the flips, which is the data's own.
NOISE=${NOISE:-0.25}
NOISE_SEED=${NOISE_SEED:-0}
# Answers a prompt, and largest n.
SAMPLES=${SAMPLES:-256}
MAX_N=${MAX_N:-128}
MEASURED=${MEASURED:-16}

mkdir -p "$OUT"
# 1. Two answers of the policy to each prompt, labeled by nobody yet.
$GRMLIGHT bon --policy "$SFT" --prompts "$PROMPTS" --samples 2 --max_new_tokens 40 --seed 1 \
    --out "$OUT/sampled" --pairs "$OUT/pairs.jsonl"
# 2. The gold labels them; a quarter of the labels is flipped, and the flips are kept with the rows.
$GRMLIGHT relabel "$OUT/pairs.jsonl" --reward "$GOLD" --noise "$NOISE" --seed "$NOISE_SEED" --out "$OUT/train.jsonl"
# 3. The proxy learns from them; the fit says where its model is.
PROXY=$($GRMLIGHT fit --config configs/grm.yaml --config configs/chain.yaml --data.init_args.train "$OUT/train.jsonl" |
    tee /dev/stderr | sed -n 's/^model: //p')
# 4. Best-of-n of the policy by the proxy, on other prompts: does the gold follow?
zcat -f "$HELD_OUT" | sed -n "1,${MEASURED}p" > "$OUT/held_out.jsonl"
$GRMLIGHT bon --policy "$SFT" --prompts "$OUT/held_out.jsonl" --samples "$SAMPLES" --max_new_tokens 40 --seed 2 \
    --reward proxy="$PROXY" --gold "$GOLD" --max_n "$MAX_N" --out "$OUT/curves"
echo "curves: $OUT/curves/curves.md, $OUT/curves/curves.png"
