#!/usr/bin/env bash
# Everything that is worth knowing about one GPU, in about 20 minutes: results go to the folder that is named first.
#
#     MODEL=HuggingFaceTB/SmolLM2-135M DATA=stanfordnlp/sst2 bash tests/benchmarks/on_one_gpu.sh gpu_results
#
# On a CPU it can be tried with small sizes:
# SHAPE=tiny SHORT=64 LONG=16 BATCHES=16 LONG_BATCH=8 COUNT=16 PAIRS=2 REPETITIONS=1 SEEDS=42 RACE_ROWS=64 TEST_ROWS=64
set -euo pipefail
results=$1 && mkdir -p "$results"
(nvidia-smi || true) > "$results/gpu.txt"
variants="torch_compile load_in_4bit"

speed() { python -m tests.benchmarks.speed --model "${SHAPE:-gpt2}" --repetitions "${REPETITIONS:-2}" "$@"; }

for batch in ${BATCHES:-32 128 512}; do # rows a step
    speed --batch_size "$batch" --train_rows "${SHORT:-16384}" --variants $variants --without_seeds_recipe \
        --output_file "$results/short_$batch.json"
done
speed --rows long --batch_size "${LONG_BATCH:-16}" --train_rows "${LONG:-512}" --variants $variants \
    --output_file "$results/long.json"
for rows in short long; do
    python -m tests.benchmarks.ablations --model "${SHAPE:-gpt2}" --rows $rows --count "${COUNT:-512}" --pairs "${PAIRS:-10}" \
        --output_file "$results/ablations_$rows.json"
done
python -m tests.benchmarks.race --output_file "$results/race.png" --seeds ${SEEDS:-42 43 44} \
    --max_train_samples "${RACE_ROWS:-8000}" ${TEST_ROWS:+--max_eval_samples "$TEST_ROWS"} \
    --model_name_or_path "$MODEL" --dataset_name "$DATA"
