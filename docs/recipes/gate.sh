#!/bin/sh
# Audit one model file, keep the evidence, and end with the exit code of the gate.
#
#   sh gate.sh MODEL IMAGES [REPORT [option of pytest ...]]
#
# REPORT (default: backdoor-audit-report) then holds audit.json, the page, audit.sarif, audit.md and junit.xml.
# PYTHON names the interpreter that has backdoor-audit installed (default: python3).
set -u

if [ "$#" -lt 2 ]; then
    echo "usage: sh gate.sh MODEL IMAGES [REPORT [option of pytest ...]]" >&2
    exit 4
fi
model=$1 images=$2 report=${3:-backdoor-audit-report}
if [ "$#" -gt 3 ]; then shift 3; else shift "$#"; fi
python=${PYTHON:-python3}

mkdir -p "$report" || exit 4
rm -f "$report/audit.json" "$report/.audit.earlier.json" "$report/audit.html" "$report/audit.sarif" "$report/audit.md" \
    "$report/report.html" "$report/junit.xml"
"$python" -m pytest --audit-model="$model" --audit-data="$images" --audit-report="$report" \
    --junitxml="$report/junit.xml" "$@"
code=$?

if [ "$code" -eq 0 ] && [ ! -f "$report/audit.json" ]; then
    echo "gate.sh: no $report/audit.json; a pass without evidence is none" >&2
    exit 1
fi
exit "$code"
