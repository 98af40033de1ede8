"""The `cloister` command: run, validate, preview, plan and verify."""
