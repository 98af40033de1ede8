#!/usr/bin/env bash
# Installs what the single node of the end-to-end tests needs and this machine lacks: a container runtime, CNI plugins,
# iptables, busybox, a C compiler. Debian and Ubuntu; nothing happens when all is there.
set -euo pipefail

declare -A package_of=(
  [containerd]=containerd [ctr]=containerd [runc]=runc [iptables]=iptables [ip]=iproute2 [nsenter]=util-linux [gcc]=gcc
)
missing=()
for command in "${!package_of[@]}"; do
  command -v "$command" >/dev/null || missing+=("${package_of[$command]}")
done
[[ -x /usr/lib/cni/ptp || -x /opt/cni/bin/ptp ]] || missing+=(containernetworking-plugins)
[[ -x /bin/busybox ]] || missing+=(busybox-static)
[[ -e /usr/lib/x86_64-linux-gnu/libc.a || -e /usr/lib/aarch64-linux-gnu/libc.a ]] || missing+=(libc6-dev)
if ((${#missing[@]} == 0)); then
  exit 0
fi
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)

if ! command -v apt-get >/dev/null; then
  echo "The node needs ${missing[*]} (Debian's package names). Install them with this machine's package manager." >&2
  exit 1
fi
if ((EUID != 0)); then
  echo "The node needs ${missing[*]}. As root: apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
echo "Installing ${missing[*]} ..." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --no-install-recommends "${missing[@]}" >/dev/null
