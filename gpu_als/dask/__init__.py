"""Training on the workers of a Dask cluster.

    from distributed import Client
    from gpu_als import AlternatingLeastSquares
    from gpu_als.dask import DaskInteractions

    client = Client(...)
    model = AlternatingLeastSquares(factors=128, use_cg=False)
    model.fit(DaskInteractions(client, user_items))

Estimators, parameters and results are those of a fit in one process. Needs ``pip install
gpu-als[dask]``.
"""

try:
    from gpu_als.dask.sources import DaskInteractions
except ImportError as error:
    raise ImportError(
        f"gpu_als.dask needs dask.distributed, which cannot be imported ({error}); install it with "
        "pip install 'gpu-als[dask]'"
    ) from error

__all__ = ["DaskInteractions"]
