"""FCPTS: thresholds that learn how much each layer gives up, at an exactly met global rate.

``winnow.compress(..., method="fcpts")`` is the whole way; the method alone, on any torch module::

    from winnow.fcpts import FCPTS, FcptsSettings
    fitted = FCPTS(FcptsSettings(steps=300)).fit(model, batches, sparsity=0.9)
"""

from winnow.fcpts.method import FCPTS, Fitted
from winnow.fcpts.settings import FcptsSettings

__all__ = ["FCPTS", "FcptsSettings", "Fitted"]
