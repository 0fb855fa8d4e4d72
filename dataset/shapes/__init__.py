"""A synthetic dataset: scenes of a few colored shapes, drawn from a seed, with the annotations of every task."""

from dataset.shapes.build import SCENES, make_dataset, vocabulary
from dataset.shapes.scene import Item, Place, Scene

__all__ = ['SCENES', 'Item', 'Place', 'Scene', 'make_dataset', 'vocabulary']
