#!/bin/bash
# Trains on a TPU slice, on all of its machines, which find each other:
#
#     gcloud compute tpus tpu-vm create pod --zone=us-west4-a \
#         --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
#     launch/tpu_vm.sh pod us-west4-a --config=configs/vp/cifar10_ddpmpp_continuous.py \
#         --workdir=gs://bucket/runs/c10
#
# It copies this checkout's last commit to the machines, installs it there, and trains. The same
# command goes on after a preemption. Further options of gcloud are those in GCLOUD, such as
# GCLOUD="--internal-ip --project=mine".
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: $0 NAME ZONE --config=... --workdir=gs://... [--config.x.y=v]" >&2
    exit 2
fi
name=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."

everywhere=(--zone="$zone" --worker=all)
read -r -a more <<<"${GCLOUD:-}"
archive=$(mktemp -d)/score_sde.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
git archive --prefix=score_sde/ --output="$archive" HEAD

gcloud compute tpus tpu-vm scp "$archive" "$name:" "${everywhere[@]}" ${more[@]+"${more[@]}"}
install="tar -xzf score_sde.tar.gz && cd score_sde && make install PYTHON=python3.11 &&
    .venv/bin/pip install --quiet -e '.[tpu,gcs]'"
printf -v train ' %q' .venv/bin/python main.py --mode=train --distributed "$@"
gcloud compute tpus tpu-vm ssh "$name" "${everywhere[@]}" ${more[@]+"${more[@]}"} \
    --command="$install && exec$train"
