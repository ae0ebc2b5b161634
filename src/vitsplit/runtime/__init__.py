"""Predictions from an exported folder with numpy, Pillow and ONNX Runtime or OpenVINO; PyTorch is not imported.

>>> from vitsplit.runtime import Runtime
>>> Runtime("exported").predict("image.jpg")["segmentation"].overlay().show()  # doctest: +SKIP
"""

from vitsplit.runtime.runtime import Runtime

__all__ = ["Runtime"]
