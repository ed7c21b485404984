#!/bin/bash
# One experiment on the Ray cluster that this job is submitted to: bash job.sh PROJECT EXPERIMENT
#
# `python launch.py submit EXPERIMENT --to ray` (or kubernetes) fills in the block below. By hand: edit it, then run
# ray job submit --address http://HEAD:8265 --working-dir . -- bash cluster/ray/job.sh . experiments/quickstart.yaml
set -eu
project=$(realpath -s "$1")
experiment=$(realpath -s "$2")
# >>> filled by submit
folder=/shared
options=(--data data --store store)
# <<< filled by submit
# Relative paths start from a folder that every node mounts; the job's own folder is deleted with the job.
cd "$folder"
PIXELPICK_JOB=$(mktemp -d)
export PIXELPICK_JOB
trap : TERM # the run gets it too and stops by itself
status=0
python "$project/launch.py" run "$experiment" --address auto "${options[@]}" || status=$?
# A failure would be retried, but people have to answer first.
if [[ $status == 3 && -s $PIXELPICK_JOB/people ]]; then
  echo "Nothing to do before people have answered; submit it again then. $(cat "$PIXELPICK_JOB/people")"
  status=0
fi
rm -r "$PIXELPICK_JOB"
exit "$status"
