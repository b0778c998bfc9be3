#!/bin/sh
# Peak memory of every way to tune, each alone in a process: the first argument is the program, the second a folder for the runs.
#   sh docs/measurements/ways-alone.sh target/release/espalier runs/ways-alone
set -eu
program=$1
run() {
    "$program" --quiet --json run recipes/ways-to-tune.toml "output=$output" 'seeds=[0]' \
        stage.base.train.options.steps=40 stage.full.train.options.steps=40 --only "$1"
}
output=$2
run base > /dev/null
for way in full freeze lora rslora dora pissa lora-plus qlora loreft direft; do
    run "$way" | python3 -c "import json, sys; print('$way', json.load(sys.stdin)['seeds']['0']['$way']['peak_bytes'] >> 20, 'MiB')"
done
