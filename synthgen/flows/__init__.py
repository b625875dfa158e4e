"""Prefect flows: the only place that imports Prefect. Bodies are one library call each."""

import os

TAG = "synthgen"
"""On deployments and runs of ours: automations know them by it."""

# Read by Prefect, Hugging Face and Ray at import: no telemetry, and time for a slow first start.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}.items():
    os.environ.setdefault(_name, _value)
