"""Many models, audited one by one by the gate: on this machine, on a cluster, or in shares of a job array."""
