#!/bin/bash
# One experiment on the Ray cluster that this job was submitted to: bash job.sh PROJECT EXPERIMENT
#
# `python launch.py submit EXPERIMENT --to ray` (and --to kubernetes) fills the block below. By hand: edit it, then
# ray job submit --address http://HEAD:8265 --working-dir . -- bash cluster/ray/job.sh . experiments/quickstart.yaml
set -eu
project=$(realpath "$1")
experiment=$(realpath "$2")
# >>> filled by submit
folder=/shared
options=(--data data --store store)
# <<< filled by submit
# Relative paths start in a folder that every node sees; the folder of the job itself goes away with the job.
cd "$folder"
exec python "$project/launch.py" run "$experiment" --address auto "${options[@]}"
