#!/usr/bin/env bash
# The whole method on a miniature data set that is drawn here: data, labels, DiagnosisBot, ADM masks, knowledge base, teacher,
# student, scores and a report for one image. No data, GPU or system Java needed. Flags of main_train.py may follow.
source "$(dirname "$0")/modules/launch/python.sh"
OUT=${DEMO_DIR:-results/demo}
RESUME=$([ -e "$OUT/run.json" ] && echo --resume || true)
[ -z "$RESUME" ] || echo "going on with the demo in $OUT (remove it and knowledge/miniature to start anew)"
"$PYTHON" -m data.miniature_set --out data/miniature
# the extractor starts from the DiagnosisBot's backbone, which has seen such images
"$PYTHON" main_train.py --dataset_name miniature --from_scratch --gid_rounds 1 --save_dir "$OUT" \
    --extractor_weights knowledge/miniature/diagnosisbot.pt $RESUME "$@"
"$PYTHON" main_test.py --load "$OUT/best.pt"
STUDY=$(ls -d data/miniature/images/*/ | tail -1)
"$PYTHON" main_test.py --load "$OUT/best.pt" --image "${STUDY}0.png"
