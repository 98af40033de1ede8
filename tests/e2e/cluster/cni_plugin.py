"""A CNI plugin, last in the chain: a pod starts when the rules of its NetworkPolicies are in place, and not before.

containerd runs this file by itself, outside of the tests' environment: it knows only Python's own library.
"""

import json
import os
import socket
import sys
from typing import Any

VERSIONS = {"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0"]}
TIMEOUT_S = 30.0


def main() -> int:
    """Answer one CNI command."""
    command = os.environ["CNI_COMMAND"]
    if command == "VERSION":
        print(json.dumps(VERSIONS))
        return 0
    configuration = json.load(sys.stdin)
    result = configuration.get("prevResult")
    if command == "ADD":
        try:
            ask(configuration["socket"], pod(result))
        except (OSError, ValueError) as error:
            text = f"The rules of the pod's NetworkPolicies are not in place: {error}"
            print(json.dumps({"cniVersion": configuration["cniVersion"], "code": 11, "msg": text}))  # 11: try again
            return 1
        print(json.dumps(result))
    return 0


def pod(result: dict[str, Any]) -> dict[str, str]:
    """The pod whose sandbox this is, with the address that it got."""
    arguments = dict(pair.split("=", 1) for pair in os.environ["CNI_ARGS"].split(";") if "=" in pair)
    address = result["ips"][0]["address"].partition("/")[0]
    return {"uid": arguments["K8S_POD_UID"], "address": address}


def ask(path: str, told: dict[str, str]) -> None:
    """Tell the enforcer of a pod and wait until it says that the rules are there. ValueError when it says no."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(TIMEOUT_S)
        connection.connect(path)
        connection.sendall(json.dumps(told).encode() + b"\n")
        answer = connection.makefile().readline()
    if answer != "ok\n":
        raise ValueError(answer or "no answer")


if __name__ == "__main__":
    sys.exit(main())
