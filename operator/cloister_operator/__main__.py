"""`python -m cloister_operator`: run the operator in a pod, or against the current kubeconfig."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence

import kopf
from prometheus_client import start_http_server

from cloister_operator.handlers import Operator
from cloister_operator.logs import configure_logging
from cloister_operator.settings_file import DEFAULT_PATH, SETTINGS_ENVIRONMENT, SettingsError, load_configuration


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run until stopped by a signal. Returns 2 when the settings cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m cloister_operator",
        description="Runs FineTuneJobs. Settings come from the file that CLOISTER_SETTINGS names; CLOISTER_NAMESPACE "
        "restricts the operator to one namespace.",
    )
    parser.add_argument("--settings", metavar="PATH", help=f"the settings file (default: {DEFAULT_PATH})")
    parser.add_argument("--check", action="store_true", help="only say whether the settings can be used")
    parser.add_argument("--control-port", type=int, default=8444, help="port of the control listener")
    parser.add_argument("--canary-port", type=int, default=8445, help="port of the canary listener")
    parser.add_argument("--metrics-port", type=int, default=9090, help="port of the Prometheus metrics")
    parser.add_argument("--health-port", type=int, default=8080, help="port of /healthz and /readyz")
    parser.add_argument("--verbose", action="store_true", help="say more in the log")
    options = parser.parse_args(arguments)
    named = {SETTINGS_ENVIRONMENT: options.settings} if options.settings else {}
    try:
        configuration = load_configuration({**environ, **named})
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if options.check:
        sys.stdout.write("The settings can be used.\n")
        return 0
    configure_logging(logging.DEBUG if options.verbose else logging.INFO)
    start_http_server(options.metrics_port)
    registry = kopf.OperatorRegistry()
    Operator(configuration, options.control_port, options.canary_port, options.health_port).register(registry)
    kopf.run(
        registry=registry,
        clusterwide=configuration.namespace is None,
        namespaces=[configuration.namespace] if configuration.namespace else [],
        standalone=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
