"""The edge: bodies, admission, records, logs, metrics, traces, errors and streams, before any endpoint."""
