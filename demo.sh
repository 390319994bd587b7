#!/usr/bin/env bash
# The whole method on a miniature data set that is drawn here: data, labels, DiagnosisBot, ADM masks, knowledge base, teacher,
# student, scores and a report for one picture. No data, GPU or system Java needed. Flags of main_train.py may follow.
source "$(dirname "$0")/.ci/python.sh"
OUT=${DEMO_DIR:-results/demo}
if [ -e "$OUT/run.json" ]; then
    echo "$OUT holds an earlier demo: going on with it (remove it, and knowledge/miniature, to start anew)"
fi
"$PYTHON" -m data.miniature --out data/miniature
"$PYTHON" main_train.py --dataset_name miniature --from_scratch --gid_rounds 1 --save_dir "$OUT" \
    $([ -e "$OUT/run.json" ] && echo --resume) "$@"
"$PYTHON" main_test.py --load "$OUT/best.pt"
PICTURES=$(ls -d data/miniature/images/*/ | tail -1)
"$PYTHON" main_test.py --load "$OUT/best.pt" --image "${PICTURES}0.png" "${PICTURES}1.png"
