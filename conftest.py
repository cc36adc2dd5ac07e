"""Names the plugin and the fixtures, nothing else."""

pytest_plugins = ["backdoor_audit.plugin", "pytester"]
