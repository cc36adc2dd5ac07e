"""The audited network and what is asked of any network: wrapper, loading, training, metrics, activations."""
