"""The same half-sweeps on the workers of a Dask cluster."""
