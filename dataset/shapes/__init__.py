"""The embedded demo world: scenes of a few coloured shapes, drawn from a seed, with the annotations of every task."""

from dataset.shapes.scene import Item, Place, Scene
from dataset.shapes.world import SCENES, make_world, vocabulary

__all__ = ['SCENES', 'Item', 'Place', 'Scene', 'make_world', 'vocabulary']
