"""Procedurally generated rooms with exact labels for all four tasks: for the demo, the tests and first steps.

The classes are told by shape: colours and textures are drawn apart from them. Everything is ray cast with numpy, and
depends on the seed alone.
"""

from vitsplit.sample.dataset import DEPTH_SCALE, write_segmentation_set
from vitsplit.sample.scene import CLASSES, OBJECT_CLASSES, SampleScene, generate_scene

__all__ = ["CLASSES", "DEPTH_SCALE", "OBJECT_CLASSES", "SampleScene", "generate_scene", "write_segmentation_set"]
