"""Procedurally generated rooms with exact labels for all four tasks: for the demo, tests and tutorials.

Classes are defined by shape; colors and textures are independent of them. Scenes are ray cast with numpy and depend on
the seed only.
"""

from vitsplit.sample.dataset import DEPTH_SCALE, write_segmentation_set
from vitsplit.sample.scene import CLASSES, OBJECT_CLASSES, SampleScene, generate_scene

__all__ = ["CLASSES", "DEPTH_SCALE", "OBJECT_CLASSES", "SampleScene", "generate_scene", "write_segmentation_set"]
